"""Every public method of the SDK's clients on the stub: it works, truly, or it is refused at once and says so.

What is offered is listed in helpers/stub_tinker/support.py; here each method of both lists is called through the real SDK.
"""

import asyncio
import inspect
import json
import os
import pickle
import subprocess
import sys
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import tinker
import torch
from stub import Server
from test_stub_server import datums, greedy, prompt, train
from tinker import types

from helpers.stub_tinker import support
from helpers.stub_tinker.support import NOT_OFFERED, SUPPORTED, expand

CLASSES = (tinker.ServiceClient, tinker.TrainingClient, tinker.SamplingClient, tinker.RestClient)
HANG = 60  # seconds; the SDK repeats a refused request for minutes
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


class World:
    """A server with a trained run of one key, and a second key beside it."""

    def __init__(self, model: Path, state: Path):
        self.server = Server(model, state)
        self.service = tinker.ServiceClient(
            base_url=self.server.url,
            api_key="tml-first",
            project_id="lab",
            display_name="Course of Tuesday",
            user_metadata={"group": "a"},
        )
        self.rest, self.other = self.server.rest("tml-first"), self.server.rest("tml-other")
        self.stranger = self.server.connect("tml-other")
        self.client = self.service.create_lora_training_client(
            self.server.model, rank=8, seed=1, user_metadata={"try": "1"}
        ).result()
        self.run = self.client.model_id
        train(self.client, 2)
        self.state = self.client.save_state("state").result().path
        self.weights = self.client.save_weights_for_sampler("sampler").result().path
        self.external = self.client.save_weights_external("external").result().path
        self.sampler = self.service.create_sampling_client(model_path=self.weights).result()
        self.loss = self.client.forward(datums(), "cross_entropy").result().metrics["loss:sum"]
        self.session = self.service.holder.get_session_id()

    def name(self, start: str) -> str:
        self.count = getattr(self, "count", 0) + 1
        return f"{start}-{self.count}"

    def saved(self) -> str:
        return self.client.save_state(self.name("saved")).result().path

    def loss_of(self, client: tinker.TrainingClient) -> float:
        return client.forward(datums(), "cross_entropy").result().metrics["loss:sum"]

    def fresh(self) -> tinker.TrainingClient:
        return self.service.create_lora_training_client(self.server.model, rank=8, seed=1).result()


@pytest.fixture(scope="module")
def world(small_model, tmp_path_factory):
    world = World(small_model, tmp_path_factory.mktemp("sdk"))
    yield world
    world.service.close("success").result()
    world.stranger.close("success").result()
    world.server.stop()
    assert "Traceback" not in world.server.log.read_text()


class Do:
    """Calls a method of the SDK, in the form under test: as it is, or its `_async` twin."""

    def __init__(self, is_async: bool):
        self.is_async = is_async

    def __call__(self, target: Any, name: str, *arguments: Any, **named: Any) -> Any:
        value = getattr(target, name + "_async" * self.is_async)(*arguments, **named)
        if inspect.iscoroutine(value):
            value = asyncio.run(asyncio.wait_for(value, HANG))
        while hasattr(value, "result"):
            value = value.result(timeout=HANG)
        return value


EXERCISES: dict[str, Any] = {}


def exercise(name: str):
    def register(function):
        EXERCISES[name] = function
        return function

    return register


@exercise("ServiceClient.close")
def _(w, do):
    service = w.server.connect("tml-first")
    client = service.create_lora_training_client(w.server.model, rank=4).result()
    session = service.holder.get_session_id()
    do(service, "close", "errored", "lost the plot")
    found = w.rest.search_sessions(types.SessionSearchRequest(session_id=session)).result().sessions[0]
    assert (
        found.status.type == "client_finished"
        and found.status.reason.type == "errored"
        and found.status.detail == "lost the plot"
    )
    assert w.rest.get_session(session).result().training_run_ids == [client.model_id]


@exercise("ServiceClient.copy_weights")
def _(w, do):
    path = do(w.service, "copy_weights", w.state)
    assert path.split("/")[2] != w.run and w.loss_of(
        w.service.create_training_client_from_state(path).result()
    ) == pytest.approx(w.loss)


@exercise("ServiceClient.create_custom_loss")
def _(w, do):
    def half(logprobs, weights):
        loss = -(logprobs * weights).sum() / 2
        return loss, {"custom/half:sum": loss}

    handle = do(w.service, "create_custom_loss", half, input_ranks={"logprobs": 1, "weights": 1})
    result = w.client.forward_backward_custom(datums(), handle).result()
    assert result.metrics["custom/half:sum"] == pytest.approx(w.loss / 2, rel=1e-3)


@exercise("ServiceClient.create_lora_training_client[_async]")
def _(w, do):
    client = do(w.service, "create_lora_training_client", w.server.model, rank=4, seed=3)
    assert client.get_info().lora_rank == 4 and w.loss_of(client) > 0


@exercise("ServiceClient.create_rest_client")
def _(w, do):
    assert w.run in [
        run.training_run_id
        for run in w.service.create_rest_client().list_training_runs(limit=100).result().training_runs
    ]


@exercise("ServiceClient.create_sampling_client[_async]")
def _(w, do):
    assert greedy(do(w.service, "create_sampling_client", model_path=w.weights)) == greedy(w.sampler)


@exercise("ServiceClient.create_training_client_from_state[_async]")
def _(w, do):
    assert w.loss_of(do(w.service, "create_training_client_from_state", w.state)) == pytest.approx(w.loss)


@exercise("ServiceClient.create_training_client_from_state_with_optimizer[_async]")
def _(w, do):
    losses = [
        train(do(w.service, "create_training_client_from_state_with_optimizer", w.state), 2) for _ in range(2)
    ]
    assert losses[0] == pytest.approx(losses[1]) and losses[0][0] == pytest.approx(w.loss)


@exercise("ServiceClient.get_console_url")
def _(w, do):
    assert w.session in w.service.get_console_url()


@exercise("ServiceClient.get_server_capabilities[_async]")
def _(w, do):
    offered = do(w.service, "get_server_capabilities").supported_models
    assert [(m.model_name, m.max_context_length) for m in offered] == [(w.server.model, 256)]


@exercise("ServiceClient.get_telemetry")
@exercise("TrainingClient.get_telemetry")
@exercise("SamplingClient.get_telemetry")
@exercise("RestClient.get_telemetry")
def _(w, do):
    for client in (w.service, w.client, w.sampler):
        assert client.get_telemetry() is client.holder.get_telemetry()
    w.rest.get_telemetry()
    assert json.loads(
        w.server.post("/api/v1/telemetry", b'{"events": []}', **{"X-API-Key": "tml-first"})[1]
    ) == {"status": "accepted"}


@exercise("ServiceClient.holder")
def _(w, do):
    assert w.service.holder.get_session_id() == w.session


@exercise("TrainingClient.create_sampling_client[_async]")
def _(w, do):
    assert greedy(do(w.client, "create_sampling_client", w.weights)) == greedy(w.sampler)


@exercise("TrainingClient.forward[_async]")
def _(w, do):
    assert do(w.client, "forward", datums(), "cross_entropy").metrics["loss:sum"] == pytest.approx(w.loss)


@exercise("TrainingClient.forward_backward[_async]")
def _(w, do):
    client = w.fresh()
    before = do(client, "forward_backward", datums(), "cross_entropy").metrics["loss:sum"]
    client.optim_step(types.AdamParams(learning_rate=1e-2)).result()
    assert w.loss_of(client) < before


@exercise("TrainingClient.forward_backward_custom[_async]")
def _(w, do):
    def loss(data, logprobs):
        total = -torch.cat(logprobs).sum()
        return total, {"mine": float(total.detach())}

    metrics = do(w.client, "forward_backward_custom", datums(), loss).metrics
    assert metrics["mine"] > w.loss  # prompt tokens count here


@exercise("TrainingClient.get_console_url")
def _(w, do):
    assert w.run in w.client.get_console_url()


@exercise("TrainingClient.get_info[_async]")
def _(w, do):
    info = do(w.client, "get_info")
    assert (info.model_id, info.lora_rank, info.model_data.model_name) == (w.run, 8, w.server.model)


@exercise("TrainingClient.get_tokenizer")
@exercise("SamplingClient.get_tokenizer")
def _(w, do):
    for client in (w.client, w.sampler):
        tokenizer = client.get_tokenizer()
        assert tokenizer.decode(tokenizer.encode("Final answer: 42")) == "Final answer: 42"


@exercise("TrainingClient.load_state[_async]")
@exercise("TrainingClient.load_state_with_optimizer[_async]")
def _(w, do):
    for method in ("load_state", "load_state_with_optimizer"):
        client = w.fresh()
        do(client, method, w.state)
        assert w.loss_of(client) == pytest.approx(w.loss)


@exercise("TrainingClient.optim_step[_async]")
def _(w, do):
    client = w.fresh()
    before = client.forward_backward(datums(), "cross_entropy").result().metrics["loss:sum"]
    do(client, "optim_step", types.AdamParams(learning_rate=1e-2))
    assert w.loss_of(client) < before


@exercise("TrainingClient.save_state[_async]")
def _(w, do):
    name = w.name("made")
    first = do(w.client, "save_state", name, ttl_seconds=7200, user_metadata={"step": "2"})
    listed = {c.tinker_path: c for c in w.rest.list_checkpoints(w.run).result().checkpoints}[first.path]
    assert timedelta(0) < listed.expires_at - datetime.now(UTC) <= timedelta(
        hours=2
    ) and listed.user_metadata == {"step": "2"}
    assert do(w.client, "save_state", name, overwrite=True).path == first.path


@exercise("TrainingClient.save_weights_and_get_sampling_client[_async]")
def _(w, do):
    assert greedy(do(w.client, "save_weights_and_get_sampling_client")) == greedy(w.sampler)


@exercise("TrainingClient.save_weights_external[_async]")
def _(w, do):
    path = do(w.client, "save_weights_external", w.name("out")).path
    assert "adapter_config.json" in w.rest.get_external_weights_urls(path).result().urls


@exercise("TrainingClient.save_weights_for_sampler[_async]")
def _(w, do):
    path = do(w.client, "save_weights_for_sampler", w.name("snap")).path
    assert greedy(w.service.create_sampling_client(model_path=path).result()) == greedy(w.sampler)


@exercise("SamplingClient.compute_logprobs[_async]")
def _(w, do):
    scores = do(w.sampler, "compute_logprobs", prompt(1, 2, 3))
    assert scores[0] is None and all(score < 0 for score in scores[1:])


@exercise("SamplingClient.create")
def _(w, do):
    assert greedy(tinker.SamplingClient.create(w.service.holder, model_path=w.weights).result()) == greedy(
        w.sampler
    )


@exercise("SamplingClient.get_sampler_handle")
@exercise("SamplingClient.from_sampler_handle")
def _(w, do):
    handle = w.sampler.get_sampler_handle()
    twins = [
        tinker.SamplingClient.from_sampler_handle(handle, api_key="tml-first"),
        pickle.loads(pickle.dumps(w.sampler)),
    ]
    assert [greedy(twin) for twin in twins] == [greedy(w.sampler)] * 2
    assert (
        len({twin._cloned_sampler_id for twin in [w.sampler, *twins]}) == 3
    )  # the server gave each a number of its own
    with pytest.raises(tinker.NotFoundError, match="no sampler"):
        greedy(tinker.SamplingClient.from_sampler_handle(handle, api_key="tml-other"))


@exercise("SamplingClient.get_base_model[_async]")
def _(w, do):
    assert do(w.sampler, "get_base_model") == w.server.model


@exercise("SamplingClient.on_queue_state_change")
def _(w, do):
    from tinker.lib.api_future_impl import QueueState

    assert w.sampler.on_queue_state_change(QueueState.ACTIVE, None) is None


@exercise("SamplingClient.sample[_async]")
def _(w, do):
    result = do(
        w.sampler, "sample", prompt(), 2, types.SamplingParams(max_tokens=5, temperature=1.0, seed=1, stop=[])
    )
    assert [len(s.tokens) for s in result.sequences] == [5, 5]


@exercise("RestClient.copy_weights[_async]")
def _(w, do):
    path = do(w.rest, "copy_weights", w.weights, "anything", ttl_seconds=7200)
    run = path.split("/")[2]
    info = w.rest.get_training_run(run).result()
    assert info.base_model == w.server.model and info.lora_rank == 8
    assert (
        info.last_sampler_checkpoint.tinker_path == path
        and info.last_sampler_checkpoint.expires_at is not None
    )
    assert greedy(w.service.create_sampling_client(model_path=path).result()) == greedy(w.sampler)
    assert [
        r.training_run_id
        for r in w.rest.list_training_runs(limit=100, project_id="anything").result().training_runs
    ][0] == run


@exercise("RestClient.delete_checkpoint[_async]")
def _(w, do):
    path = w.saved()
    do(w.rest, "delete_checkpoint", w.run, path.split("/", 3)[3])
    assert path not in [c.tinker_path for c in w.rest.list_checkpoints(w.run).result().checkpoints]


@exercise("RestClient.delete_checkpoint_from_tinker_path[_async]")
def _(w, do):
    path = w.saved()
    do(w.rest, "delete_checkpoint_from_tinker_path", path)
    with pytest.raises(tinker.NotFoundError, match="no checkpoint"):
        w.rest.get_weights_info_by_tinker_path(path).result()


@exercise("RestClient.get_current_checkpoint_storage_usage[_async]")
def _(w, do):
    checkpoints = w.rest.list_user_checkpoints(limit=1000).result().checkpoints
    data = do(w.rest, "get_current_checkpoint_storage_usage").data
    assert sum(item.checkpoint_count for item in data) == len(checkpoints)
    assert sum(item.size_bytes for item in data) == sum(c.size_bytes for c in checkpoints)
    assert [item.project_id for item in do(w.rest, "get_current_checkpoint_storage_usage", "lab").data] == [
        "lab"
    ]


@exercise("RestClient.get_external_weights_urls[_async]")
def _(w, do):
    answer = do(w.rest, "get_external_weights_urls", w.external)
    with urllib.request.urlopen(answer.urls["adapter_config.json"]) as file:
        assert json.load(file)["r"] == 8
    assert answer.expires > datetime.now(UTC) + timedelta(minutes=30)


@exercise("RestClient.get_sampler[_async]")
def _(w, do):
    sampler = do(w.rest, "get_sampler", w.sampler._sampling_session_id)
    assert (sampler.base_model, sampler.model_path) == (w.server.model, w.weights)


@exercise("RestClient.get_server_capabilities")
def _(w, do):
    assert do(w.rest, "get_server_capabilities").supported_models[0].max_context_length == 256


@exercise("RestClient.get_session[_async]")
def _(w, do):
    session = do(w.rest, "get_session", w.session)
    assert w.run in session.training_run_ids and w.sampler._sampling_session_id in session.sampler_ids
    assert (session.display_name, session.user_metadata) == ("Course of Tuesday", {"group": "a"})
    with pytest.raises(tinker.NotFoundError):
        do(w.other, "get_session", w.session)


@exercise("RestClient.get_training_run[_async]")
@exercise("RestClient.get_training_run_by_tinker_path[_async]")
def _(w, do):
    for method, name in (("get_training_run", w.run), ("get_training_run_by_tinker_path", w.state)):
        run = do(w.rest, method, name)
        assert (run.training_run_id, run.base_model, run.lora_rank, run.user_metadata) == (
            w.run,
            w.server.model,
            8,
            {"try": "1"},
        )
        for scope in ("owned", "accessible"):
            with pytest.raises(tinker.NotFoundError):
                do(w.other, method, name, scope)


@exercise("RestClient.get_weights_info_by_tinker_path")
def _(w, do):
    client = w.service.create_lora_training_client(
        w.server.model, rank=4, train_mlp=False, train_unembed=False
    ).result()
    info = do(w.rest, "get_weights_info_by_tinker_path", client.save_state("s").result().path)
    assert (info.base_model, info.lora_rank, info.train_mlp, info.train_attn, info.train_unembed) == (
        w.server.model,
        4,
        False,
        True,
        False,
    )


@exercise("RestClient.list_checkpoints[_async]")
def _(w, do):
    found = {c.tinker_path: c.checkpoint_type for c in do(w.rest, "list_checkpoints", w.run).checkpoints}
    assert {w.state: "training", w.weights: "sampler", w.external: "external"}.items() <= found.items()


@exercise("RestClient.list_sessions[_async]")
def _(w, do):
    everything = do(w.rest, "list_sessions", limit=1000).sessions
    assert (
        w.session in everything and everything[1:3] == do(w.rest, "list_sessions", limit=2, offset=1).sessions
    )
    assert w.session not in do(w.other, "list_sessions", limit=1000).sessions


@exercise("RestClient.list_training_runs[_async]")
def _(w, do):
    everything = do(w.rest, "list_training_runs", limit=1000)
    ids = [run.training_run_id for run in everything.training_runs]
    part = do(w.rest, "list_training_runs", limit=1, offset=len(ids) - 1)
    assert [run.training_run_id for run in part.training_runs] == [w.run] == ids[-1:]  # newest first
    assert part.cursor.total_count == len(ids) and part.cursor.offset == len(ids) - 1
    assert do(w.rest, "list_training_runs", project_id="no such").training_runs == []
    assert w.run in [
        run.training_run_id
        for run in do(w.rest, "list_training_runs", limit=1000, project_id="lab").training_runs
    ]
    assert w.run not in [
        run.training_run_id
        for run in do(w.other, "list_training_runs", limit=1000, access_scope="accessible").training_runs
    ]


@exercise("RestClient.list_user_checkpoints[_async]")
def _(w, do):
    everything = do(w.rest, "list_user_checkpoints", limit=1000)
    paths = [c.tinker_path for c in everything.checkpoints]
    part = do(w.rest, "list_user_checkpoints", limit=2, offset=1)
    assert [c.tinker_path for c in part.checkpoints] == paths[1:3] and part.cursor.total_count == len(paths)
    assert w.state in paths and w.state not in [
        c.tinker_path for c in do(w.other, "list_user_checkpoints", limit=1000).checkpoints
    ]


@exercise("RestClient.publish_checkpoint_from_tinker_path[_async]")
@exercise("RestClient.unpublish_checkpoint_from_tinker_path[_async]")
def _(w, do):
    do(w.rest, "publish_checkpoint_from_tinker_path", w.state)
    do(w.rest, "publish_checkpoint_from_tinker_path", w.weights)
    assert w.other.get_weights_info_by_tinker_path(w.state).result().lora_rank == 8
    assert greedy(w.stranger.create_sampling_client(model_path=w.weights).result()) == greedy(w.sampler)
    own = w.stranger.create_training_client_from_state_with_optimizer(w.state).result()
    assert w.loss_of(own) == pytest.approx(w.loss)
    assert {c.tinker_path: c.public for c in w.other.list_checkpoints(w.run).result().checkpoints} == {
        w.state: True,
        w.weights: True,
    }
    seen = w.other.get_training_run(w.run, "accessible").result()
    assert (seen.last_checkpoint.tinker_path, seen.user_metadata) == (w.state, None)
    copied = w.other.copy_weights(w.state, "mine").result()
    assert w.other.list_checkpoints(copied.split("/")[2]).result().checkpoints[0].public is False
    for change in (
        w.other.delete_checkpoint_from_tinker_path,
        w.other.publish_checkpoint_from_tinker_path,
        w.other.unpublish_checkpoint_from_tinker_path,
        lambda path: w.other.set_checkpoint_ttl_from_tinker_path(path, None),
    ):
        with pytest.raises(tinker.PermissionDeniedError, match="not changed"):
            change(w.state).result(timeout=HANG)
    do(w.rest, "unpublish_checkpoint_from_tinker_path", w.state)
    do(w.rest, "unpublish_checkpoint_from_tinker_path", w.weights)
    with pytest.raises(tinker.NotFoundError):
        w.other.get_weights_info_by_tinker_path(w.state).result(timeout=HANG)


@exercise("RestClient.search_sessions")
def _(w, do):
    def search(**fields):
        return w.rest.search_sessions(types.SessionSearchRequest(**fields)).result()

    found = search(display_name="tuesday COURSE").sessions
    assert (
        [s.session_id for s in found] == [w.session]
        and found[0].status.type == "active"
        and found[0].project_id == "lab"
    )
    runs = [run for run in w.rest.get_session(w.session).result().training_run_ids]
    assert found[0].checkpoints_count == sum(
        len(w.rest.list_checkpoints(run).result().checkpoints) for run in runs
    )
    assert [s.session_id for s in search(user_metadata={"group": "a"}).sessions] == [
        w.session
    ] and not search(user_metadata={"group": "b"}).sessions
    for _ in range(2):
        w.server.connect("tml-first").close("success").result()
        service = w.server.connect("tml-first")
        service.holder.get_session_id()
        service.close("success").result()
    pages, cursor = [], None
    while True:
        page = search(limit=1, cursor=cursor)
        pages += [s.session_id for s in page.sessions]
        if (cursor := page.next_cursor) is None:
            break
    assert pages == w.rest.list_sessions(limit=1000).result().sessions and len(pages) >= 3
    from tinker.types.session_status_query import ActiveSessionStatusQuery, ClientFinishedSessionStatusQuery

    assert w.session in [s.session_id for s in search(statuses=[ActiveSessionStatusQuery()]).sessions]
    assert w.session not in [
        s.session_id for s in search(statuses=[ClientFinishedSessionStatusQuery()]).sessions
    ]


@exercise("RestClient.set_checkpoint_ttl_from_tinker_path[_async]")
def _(w, do):
    path = w.saved()
    do(w.rest, "set_checkpoint_ttl_from_tinker_path", path, 7200)
    expires = {c.tinker_path: c.expires_at for c in w.rest.list_checkpoints(w.run).result().checkpoints}
    assert timedelta(0) < expires[path] - datetime.now(UTC) <= timedelta(hours=2)
    do(w.rest, "set_checkpoint_ttl_from_tinker_path", path, None)
    assert {c.tinker_path: c.expires_at for c in w.rest.list_checkpoints(w.run).result().checkpoints}[
        path
    ] is None
    with pytest.raises(tinker.BadRequestError, match="ttl_seconds"):
        do(w.rest, "set_checkpoint_ttl_from_tinker_path", path, 10**12)


REFUSED = {
    "RestClient.assign_session_project": lambda w, do: do(w.rest, "assign_session_project", w.session, "p"),
    "RestClient.export_session_trace": lambda w, do: do(w.rest, "export_session_trace", w.session),
    "RestClient.get_audit_log": lambda w, do: do(w.rest, "get_audit_log"),
    "RestClient.get_billing_usage": lambda w, do: do(
        w.rest, "get_billing_usage", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"
    ),
    "RestClient.whoami": lambda w, do: do(w.rest, "whoami"),
}


def test_every_public_method_of_the_sdk_is_in_one_of_the_two_lists():
    public = {
        f"{cls.__name__}.{name}"
        for cls in CLASSES
        for name, _ in inspect.getmembers(cls)
        if not name.startswith("_")
    }
    offered, refused = set(expand(SUPPORTED)), set(expand(NOT_OFFERED))
    assert offered | refused == public and not offered & refused
    assert EXERCISES.keys() == SUPPORTED.keys()
    assert REFUSED.keys() == {name.replace("[_async]", "") for name in NOT_OFFERED}


def _key(name: str, table) -> tuple[str, bool]:
    is_async = name.endswith("_async")
    key = name.removesuffix("_async")
    return (f"{key}[_async]" if f"{key}[_async]" in table else key), is_async


@pytest.mark.parametrize("name", expand(SUPPORTED))
def test_it_works(world, name):
    key, is_async = _key(name, EXERCISES)
    EXERCISES[key](world, Do(is_async))


@pytest.mark.parametrize("name", expand(NOT_OFFERED))
def test_it_is_refused_at_once_and_says_why(world, name):
    words = (
        "requires JWT auth"
        if "whoami" in name
        else f"does not offer {name.removesuffix('_async')}|does not offer .*/"
    )
    with pytest.raises(Exception, match=words) as caught:
        REFUSED[name.removesuffix("_async")](world, Do(name.endswith("_async")))
    assert not isinstance(caught.value, TimeoutError)


@pytest.mark.parametrize(
    "call",
    [
        lambda w: w.client.load_state(w.state, weights_access_token="t"),
        lambda w: w.service.create_training_client_from_state(w.state, weights_access_token="t"),
        lambda w: w.rest.copy_weights(w.state, "p", weights_access_token="t"),
    ],
)
def test_an_access_token_for_weights_is_refused(world, call):
    with pytest.raises(tinker.BadRequestError, match="publish"):
        call(world).result(timeout=HANG)


def test_the_readme_holds_the_support_table():
    readme = Path(support.__file__).with_name("README.md").read_text(encoding="utf-8")
    table = readme.split("<!-- support -->\n")[1].split("\n<!-- /support -->")[0]
    assert table == support.markdown(), "out of date: python -m helpers.stub_tinker.support --write"


# The SDK's own command


def cli(w: World, *arguments: str, cwd: Path | None = None) -> str:
    env = {**os.environ, "TINKER_BASE_URL": w.server.url, "TINKER_API_KEY": "tml-first"}
    result = subprocess.run(
        [Path(sys.executable).with_name("tinker"), *arguments],
        env=env,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_tinker_command(world, tmp_path):
    path = world.saved()
    listed = json.loads(cli(world, "--format", "json", "checkpoint", "list", "--limit", "0"))["checkpoints"]
    assert path in [c["tinker_path"] for c in listed]
    assert path in [
        c["tinker_path"]
        for c in json.loads(cli(world, "--format", "json", "checkpoint", "list", "--run-id", world.run))[
            "checkpoints"
        ]
    ]
    assert world.run in [
        run["training_run_id"]
        for run in json.loads(cli(world, "--format", "json", "run", "list", "--limit", "0"))["runs"]
    ]
    info = json.loads(cli(world, "--format", "json", "checkpoint", "info", path))
    assert (info["tinker_path"], info["lora_rank"]) == (path, 8)
    cli(world, "checkpoint", "publish", path)
    cli(world, "checkpoint", "unpublish", path)
    cli(world, "checkpoint", "set-ttl", path, "--ttl", "7200")
    for kind in (path, world.external):
        cli(world, "checkpoint", "download", kind, "--output", str(tmp_path))
    configs = [json.loads(file.read_text()) for file in tmp_path.rglob("adapter_config.json")]
    assert len(configs) == 2 and {config["r"] for config in configs} == {8}
    cli(world, "checkpoint", "delete", "--yes", path)
    remaining = [c.tinker_path for c in world.rest.list_user_checkpoints(limit=1000).result().checkpoints]
    assert path not in remaining and not any("/external_weights/download" in p for p in remaining)


# Keys


def test_what_one_key_made_is_not_there_for_another(world):
    """On an open server too: 404, as if it did not exist."""
    calls = [
        lambda: world.other.get_training_run(world.run),
        lambda: world.other.list_checkpoints(world.run),
        lambda: world.other.get_weights_info_by_tinker_path(world.state),
        lambda: world.other.get_external_weights_urls(world.external),
        lambda: world.other.delete_checkpoint_from_tinker_path(world.state),
        lambda: world.other.set_checkpoint_ttl_from_tinker_path(world.state, 60),
        lambda: world.other.publish_checkpoint_from_tinker_path(world.state),
        lambda: world.other.copy_weights(world.state, "p"),
        lambda: world.other.get_sampler(world.sampler._sampling_session_id),
        lambda: world.other.get_session(world.session),
        lambda: world.stranger.create_sampling_client(model_path=world.weights),
        lambda: world.stranger.create_training_client_from_state(world.state),
    ]
    for call in calls:
        with pytest.raises(tinker.NotFoundError):
            call().result(timeout=HANG)
    body = {
        "model_id": world.run,
        "seq_id": 99_999,
        "session_id": world.session,
        "request_id": f"{world.run}:1",
        "sampling_session_id": world.sampler._sampling_session_id,
        "path": "x",
        "adam_params": {},
        "type": "optim_step",
    }
    for endpoint, fields in {
        "optim_step": ("model_id", "seq_id", "adam_params"),
        "save_weights": ("model_id", "seq_id", "path"),
        "get_info": ("model_id",),
        "session_heartbeat": ("session_id",),
        "retrieve_future": ("request_id",),
        "join_sampling_session": ("sampling_session_id",),
        f"sessions/{world.session}/finish": (),
    }.items():
        sent = json.dumps({field: body[field] for field in fields}).encode()
        assert world.server.post(f"/api/v1/{endpoint}", sent, **{"X-API-Key": "tml-other"})[0] == 404, (
            endpoint
        )
    assert world.loss_of(world.client) == pytest.approx(world.loss)


def test_sessions_runs_and_copies_are_known_after_a_restart(small_model, tmp_path):
    server = Server(small_model, tmp_path / "state")
    service = tinker.ServiceClient(base_url=server.url, api_key="tml-a", display_name="before")
    client = service.create_lora_training_client(server.model, rank=4).result()
    session = service.holder.get_session_id()
    path = client.save_state("s").result().path
    rest = server.rest("tml-a")
    copied = rest.copy_weights(path, "p").result()
    rest.publish_checkpoint_from_tinker_path(path).result()
    server.kill()
    again = Server(small_model, tmp_path / "state")
    rest = again.rest("tml-a")
    assert rest.list_sessions().result().sessions == [session]
    known = rest.get_session(session).result()
    assert (known.training_run_ids, known.display_name, known.sampler_ids) == (
        [client.model_id],
        "before",
        [],
    )
    assert (
        rest.search_sessions(types.SessionSearchRequest()).result().sessions[0].status is None
    )  # neither finished nor running
    assert {c.tinker_path: c.public for c in rest.list_user_checkpoints().result().checkpoints} == {
        path: True,
        copied: False,
    }
    assert again.rest("tml-b").get_weights_info_by_tinker_path(path).result().lora_rank == 4
    again.stop()
