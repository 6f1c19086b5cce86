"""Every public method of the SDK's clients on the stub: it works, or is refused at once and says so.

What is offered is listed in helpers/stub_tinker/support.py. Each method of that list is called through the
real SDK in conformance/test_methods.py, and what it must do is in sdk_clients.py and sdk_rest.py.
"""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sdk_clients  # noqa: F401  (registers its exercises)
import sdk_rest  # noqa: F401
import tinker
from click.testing import CliRunner
from sdk_world import EXERCISES, HANG, Do, World
from stub import Server
from tinker import types
from tinker.cli.__main__ import main_cli

from helpers.stub_tinker import support
from helpers.stub_tinker.calls import BY_ITSELF
from helpers.stub_tinker.openai_requests import ChatRequest, CompletionRequest
from helpers.stub_tinker.routes_openai import OPENAI
from helpers.stub_tinker.server import ENDPOINTS
from helpers.stub_tinker.support import NOT_OFFERED, OPENAI_OPTIONS, SUPPORTED, expand

CLASSES = (tinker.ServiceClient, tinker.TrainingClient, tinker.SamplingClient, tinker.RestClient)
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


REFUSED = {
    "RestClient.assign_session_project": lambda w, do: do(w.rest, "assign_session_project", w.session, "p"),
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


def test_every_route_names_calls_of_the_sdk_that_are_offered():
    of_the_sdk = [endpoint.sdk for endpoint in ENDPOINTS if endpoint.sdk not in (BY_ITSELF, OPENAI)]
    named = [name for names in of_the_sdk for name in names.split(", ")]
    assert set(named) <= set(expand(SUPPORTED)) and len(named) == len(set(named))


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


@pytest.mark.parametrize(("name", "made"), support.TABLES.items())
def test_the_readme_holds_the_tables_of_what_is_offered(name, made):
    readme = Path(support.__file__).with_name("README.md").read_text(encoding="utf-8")
    table = readme.split(f"<!-- {name} -->\n")[1].split(f"\n<!-- /{name} -->")[0]
    assert table == made(), "out of date: python -m helpers.stub_tinker.support --write"


def test_the_table_of_openais_options_is_what_is_taken():
    assert set(OPENAI_OPTIONS) == {*ChatRequest.model_fields, *CompletionRequest.model_fields}


# The SDK's own command


@pytest.fixture
def cli(world, monkeypatch) -> Callable[..., str]:
    """Runs a command of `tinker` in this process, and returns what it prints."""
    monkeypatch.setenv("TINKER_BASE_URL", world.server.url)
    monkeypatch.setenv("TINKER_API_KEY", "tml-first")

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(main_cli, arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    return run


def test_the_tinker_command(world, cli, tmp_path):
    def asked(*arguments: str) -> Any:
        return json.loads(cli("--format", "json", *arguments))

    def paths(*arguments: str) -> list[str]:
        return [checkpoint["tinker_path"] for checkpoint in asked(*arguments)["checkpoints"]]

    path = world.saved()
    assert path in paths("checkpoint", "list", "--limit", "0")
    assert path in paths("checkpoint", "list", "--run-id", world.run)
    runs = asked("run", "list", "--limit", "0")["runs"]
    assert world.run in [run["training_run_id"] for run in runs]
    info = asked("checkpoint", "info", path)
    assert (info["tinker_path"], info["lora_rank"]) == (path, 8)
    cli("checkpoint", "publish", path)
    cli("checkpoint", "unpublish", path)
    cli("checkpoint", "set-ttl", path, "--ttl", "7200")
    for kind in (path, world.external):
        cli("checkpoint", "download", kind, "--output", str(tmp_path))
    configs = [json.loads(file.read_text()) for file in tmp_path.rglob("adapter_config.json")]
    assert len(configs) == 2 and {config["r"] for config in configs} == {8}
    cli("checkpoint", "delete", "--yes", path)
    remaining = paths("checkpoint", "list", "--limit", "0")
    assert path not in remaining and not any("/external_weights/download" in p for p in remaining)


# Keys


def bodies_of_anothers(world: World) -> dict[str, dict]:
    """Requests, by endpoint, that name what belongs to the first key."""
    session, model, sampler = world.session, {"model_id": world.run}, world.sampler_id
    own = world.stranger.holder.get_session_id()
    prompt = {"chunks": [{"type": "encoded_text", "tokens": [1]}]}
    return {
        "optim_step": {**model, "seq_id": 99_999, "adam_params": {}},
        "save_weights": {**model, "seq_id": 99_999, "path": "x"},
        "get_info": model,
        "session_heartbeat": {"session_id": session},
        "retrieve_future": {"request_id": f"{world.run}:1"},
        "join_sampling_session": {"sampling_session_id": sampler},
        f"sessions/{session}/finish": {"reason": {"type": "success"}},
        "create_model": {"session_id": session, "model_seq_id": 9, "base_model": world.server.model},
        "create_sampling_session": {
            "session_id": own,
            "sampling_session_seq_id": 5,
            "model_path": world.weights,
        },
        "load_weights": {"session_id": own, "model_seq_id": 5, "path": world.state, "optimizer": False},
        "asample": {
            "sampling_session_id": sampler,
            "seq_id": 1,
            "prompt": prompt,
            "sampling_params": {"max_tokens": 1},
        },
    }


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
        lambda: world.other.get_sampler(world.sampler_id),
        lambda: world.other.get_session(world.session),
        lambda: world.stranger.create_sampling_client(model_path=world.weights),
        lambda: world.stranger.create_training_client_from_state(world.state),
    ]
    for call in calls:
        with pytest.raises(tinker.NotFoundError):
            call().result(timeout=HANG)
    for endpoint, body in bodies_of_anothers(world).items():
        sent = json.dumps(body).encode()
        code = world.server.post(f"/api/v1/{endpoint}", sent, **{"X-API-Key": "tml-other"})[0]
        assert code == 404, endpoint
    seen = world.other.list_training_runs(limit=1000).result().training_runs
    assert world.run not in [run.training_run_id for run in seen]
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
