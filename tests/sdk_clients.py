"""What each method of ServiceClient, TrainingClient and SamplingClient must do on the stub, by its name."""

import json
import pickle
from datetime import UTC, datetime, timedelta

import pytest
import tinker
import torch
from sdk_world import exercise
from stub import datums, greedy, prompt, train
from tinker import types
from tinker.lib.api_future_impl import QueueState


@exercise("ServiceClient.close")
def _(w, do):
    service = w.server.connect(w.key)
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
    w.label()
    path = do(w.service, "copy_weights", w.state)
    assert path.split("/")[2] != w.run and w.loss_of(
        w.service.create_training_client_from_state(path).result()
    ) == w.near(w.loss)


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
    assert w.loss_of(do(w.service, "create_training_client_from_state", w.state)) == w.near(w.loss)


@exercise("ServiceClient.create_training_client_from_state_with_optimizer[_async]")
def _(w, do):
    losses = [
        train(do(w.service, "create_training_client_from_state_with_optimizer", w.state), 2) for _ in range(2)
    ]
    assert losses[0] == w.near(losses[1]) and losses[0][0] == w.near(w.loss)


@exercise("ServiceClient.get_console_url")
def _(w, do):
    assert w.session in w.service.get_console_url()


@exercise("ServiceClient.get_server_capabilities[_async]")
def _(w, do):
    offered = do(w.service, "get_server_capabilities").supported_models
    assert {m.model_name: m.max_context_length for m in offered}[w.server.model] > 0


@exercise("ServiceClient.get_telemetry")
@exercise("TrainingClient.get_telemetry")
@exercise("SamplingClient.get_telemetry")
@exercise("RestClient.get_telemetry")
def _(w, do):
    for client in (w.service, w.client, w.sampler):
        assert client.get_telemetry() is client.holder.get_telemetry()
    w.rest.get_telemetry()
    assert json.loads(w.server.post("/api/v1/telemetry", b'{"events": []}', **{"X-API-Key": w.key})[1]) == {
        "status": "accepted"
    }


@exercise("ServiceClient.holder")
def _(w, do):
    assert w.service.holder.get_session_id() == w.session


@exercise("TrainingClient.create_sampling_client[_async]")
def _(w, do):
    assert greedy(do(w.client, "create_sampling_client", w.weights)) == greedy(w.sampler)


@exercise("TrainingClient.forward[_async]")
def _(w, do):
    assert do(w.client, "forward", datums(), "cross_entropy").metrics["loss:sum"] == w.near(w.loss)


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
        assert w.loss_of(client) == w.near(w.loss)


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
        tinker.SamplingClient.from_sampler_handle(handle, api_key=w.key),
        pickle.loads(pickle.dumps(w.sampler)),
    ]
    assert [greedy(twin) for twin in twins] == [greedy(w.sampler)] * 2
    # The server gives each a number of its own: else a request of one would get the answer to another's.
    free = types.SamplingParams(max_tokens=12, temperature=1.0, stop=[])
    drawn = [twin.sample(prompt(), 1, free).result().sequences[0].tokens for twin in [w.sampler, *twins]]
    assert len({tuple(tokens) for tokens in drawn}) == 3
    for stranger in w.stranger_keys:
        with pytest.raises(tinker.NotFoundError):
            greedy(tinker.SamplingClient.from_sampler_handle(handle, api_key=stranger))


@exercise("SamplingClient.get_base_model[_async]")
def _(w, do):
    assert do(w.sampler, "get_base_model") == w.server.model


@exercise("SamplingClient.on_queue_state_change")
def _(w, do):
    assert w.sampler.on_queue_state_change(QueueState.ACTIVE, None) is None


@exercise("SamplingClient.sample[_async]")
def _(w, do):
    result = do(
        w.sampler, "sample", prompt(), 2, types.SamplingParams(max_tokens=5, temperature=1.0, seed=1, stop=[])
    )
    assert [len(s.tokens) for s in result.sequences] == [5, 5]
