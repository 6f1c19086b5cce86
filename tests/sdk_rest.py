"""What each method of RestClient must do on the stub, by its name."""

import itertools
import json
import urllib.request
from datetime import UTC, datetime, timedelta

import pytest
import tinker
from sdk_world import HANG, exercise
from stub import greedy
from tinker import types
from tinker.types.session_status_query import ActiveSessionStatusQuery, ClientFinishedSessionStatusQuery


@exercise("RestClient.copy_weights[_async]")
def _(w, do):
    path = do(w.rest, "copy_weights", w.weights, w.label(), ttl_seconds=7200)
    run = path.split("/")[2]
    info = w.rest.get_training_run(run).result()
    assert info.base_model == w.server.model and info.lora_rank == 8
    assert (
        info.last_sampler_checkpoint.tinker_path == path
        and info.last_sampler_checkpoint.expires_at is not None
    )
    assert greedy(w.service.create_sampling_client(model_path=path).result()) == greedy(w.sampler)
    labelled = w.rest.list_training_runs(limit=100, project_id=w.label()).result().training_runs
    assert labelled[0].training_run_id == run


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


@exercise("RestClient.export_session_trace[_async]")
def _(w, do):
    greedy(w.sampler)
    with urllib.request.urlopen(do(w.rest, "export_session_trace", w.session)) as file:
        trace = file.read()
    names = ("create_model", "forward_backward", "optim_step", "save_weights", "sample")
    assert [name for name in names if name.encode() not in trace] == []
    for other in w.others:
        with pytest.raises(tinker.NotFoundError):
            do(other, "export_session_trace", w.session)


@exercise("RestClient.get_current_checkpoint_storage_usage[_async]")
def _(w, do):
    checkpoints = w.rest.list_user_checkpoints(limit=1000).result().checkpoints
    data = do(w.rest, "get_current_checkpoint_storage_usage").data
    assert sum(item.checkpoint_count for item in data) == len(checkpoints)
    assert sum(item.size_bytes for item in data) == sum(c.size_bytes for c in checkpoints)
    labelled = do(w.rest, "get_current_checkpoint_storage_usage", w.label()).data
    assert [item.project_id for item in labelled] == [w.label()]


@exercise("RestClient.get_external_weights_urls[_async]")
def _(w, do):
    answer = do(w.rest, "get_external_weights_urls", w.external)
    with urllib.request.urlopen(answer.urls["adapter_config.json"]) as file:
        assert json.load(file)["r"] == 8
    assert answer.expires > datetime.now(UTC) + timedelta(minutes=30)


@exercise("RestClient.get_sampler[_async]")
def _(w, do):
    sampler = do(w.rest, "get_sampler", w.sampler_id)
    assert (sampler.base_model, sampler.model_path) == (w.server.model, w.weights)


@exercise("RestClient.get_server_capabilities")
def _(w, do):
    offered = do(w.rest, "get_server_capabilities").supported_models
    assert w.server.model in [model.model_name for model in offered]


@exercise("RestClient.get_session[_async]")
def _(w, do):
    session = do(w.rest, "get_session", w.session)
    assert w.run in session.training_run_ids and w.sampler_id in session.sampler_ids
    assert (session.display_name, session.user_metadata) == ("Course of Tuesday", {"group": "a"})
    for other in w.others:
        with pytest.raises(tinker.NotFoundError):
            do(other, "get_session", w.session)


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
        for other, scope in itertools.product(w.others, ("owned", "accessible")):
            with pytest.raises(tinker.NotFoundError):
                do(other, method, name, scope)


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
    for other in w.others:
        assert w.session not in do(other, "list_sessions", limit=1000).sessions


@exercise("RestClient.list_training_runs[_async]")
def _(w, do):
    newest = w.fresh().model_id
    everything = do(w.rest, "list_training_runs", limit=1000)
    ids = [run.training_run_id for run in everything.training_runs]
    assert ids[0] == newest
    place = ids.index(w.run)
    part = do(w.rest, "list_training_runs", limit=1, offset=place)
    assert [run.training_run_id for run in part.training_runs] == [w.run]
    assert part.cursor.total_count == len(ids) and part.cursor.offset == place
    for other in w.others:
        assert w.run not in [
            run.training_run_id
            for run in do(other, "list_training_runs", limit=1000, access_scope="accessible").training_runs
        ]
    labelled = do(w.rest, "list_training_runs", limit=1000, project_id=w.label()).training_runs
    assert w.run in [run.training_run_id for run in labelled]
    assert do(w.rest, "list_training_runs", project_id="no such").training_runs == []


@exercise("RestClient.list_user_checkpoints[_async]")
def _(w, do):
    everything = do(w.rest, "list_user_checkpoints", limit=1000)
    paths = [c.tinker_path for c in everything.checkpoints]
    part = do(w.rest, "list_user_checkpoints", limit=2, offset=1)
    assert [c.tinker_path for c in part.checkpoints] == paths[1:3] and part.cursor.total_count == len(paths)
    assert w.state in paths
    for other in w.others:
        seen = do(other, "list_user_checkpoints", limit=1000).checkpoints
        assert w.state not in [c.tinker_path for c in seen]


@exercise("RestClient.publish_checkpoint_from_tinker_path[_async]")
@exercise("RestClient.unpublish_checkpoint_from_tinker_path[_async]")
def _(w, do):
    do(w.rest, "publish_checkpoint_from_tinker_path", w.state)
    do(w.rest, "publish_checkpoint_from_tinker_path", w.weights)
    assert w.other.get_weights_info_by_tinker_path(w.state).result().lora_rank == 8
    assert greedy(w.stranger.create_sampling_client(model_path=w.weights).result()) == greedy(w.sampler)
    own = w.stranger.create_training_client_from_state_with_optimizer(w.state).result()
    assert w.loss_of(own) == w.near(w.loss)
    assert {c.tinker_path: c.public for c in w.other.list_checkpoints(w.run).result().checkpoints} == {
        w.state: True,
        w.weights: True,
    }
    seen = w.other.get_training_run(w.run, "accessible").result()
    assert (seen.last_checkpoint.tinker_path, seen.user_metadata) == (w.state, None)
    copied = w.other.copy_weights(w.state, w.label()).result()
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
        w.session in [s.session_id for s in found]
        and found[0].status.type == "active"
        and found[0].project_id == (w.project or found[0].project_id)
    )
    runs = [run for run in w.rest.get_session(w.session).result().training_run_ids]
    assert found[0].checkpoints_count == sum(
        len(w.rest.list_checkpoints(run).result().checkpoints) for run in runs
    )
    assert w.session in [s.session_id for s in search(user_metadata={"group": "a"}).sessions]
    assert not search(user_metadata={"group": "no such"}).sessions
    for _ in range(2):
        w.server.connect(w.key).close("success").result()
        service = w.server.connect(w.key)
        service.holder.get_session_id()
        service.close("success").result()
    pages, cursor = [], None
    for _ in range(3):
        page = search(limit=1, cursor=cursor)
        pages += [s.session_id for s in page.sessions]
        cursor = page.next_cursor
    assert pages == w.rest.list_sessions(limit=3).result().sessions
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
