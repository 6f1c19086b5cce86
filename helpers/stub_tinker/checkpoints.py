"""Saving the weights of a training client in their three kinds, and loading them into one."""

from typing import Any

import pyrage
from safetensors.torch import save as as_safetensors
from tinker import types

from helpers.stub_tinker.checkpoint_store import format_of, parse_path
from helpers.stub_tinker.errors import StoreError
from helpers.stub_tinker.lora import adapter_config
from helpers.stub_tinker.results import Result, json_result
from helpers.stub_tinker.samplers import add_ephemeral
from helpers.stub_tinker.service import Service, TrainingClient
from helpers.stub_tinker.training_clients import register, start_client


def _files(client: TrainingClient) -> dict[str, Any]:
    return {
        "adapter_model.safetensors": client.layout.named(client.state.flat.data),
        "adapter_config.json": adapter_config(client.layout, client.base),
    }


def _details(client: TrainingClient, metadata: dict | None) -> dict:
    return {"step": client.state.steps, "user_metadata": metadata}


def save_weights(service: Service, owner: str, request: types.SaveWeightsRequest) -> dict:
    """Weights and optimizer state, to go on from."""
    client = service.client(request.model_id, owner)

    def work() -> Result:
        files = _files(client) | {"optimizer.safetensors": client.state.optimizer_tensors()}
        name = request.path or f"step-{client.state.steps}"
        details = _details(client, request.user_metadata)
        path = service.store.save(
            client.id, "weights", name, files, details, request.ttl_seconds, request.overwrite
        )
        return json_result({"path": path, "type": "save_weights"})

    return service.operate(client, request.seq_id, "save_weights", work)


def save_weights_for_sampler(
    service: Service, owner: str, request: types.SaveWeightsForSamplerRequest
) -> dict:
    """Weights to sample from: under a name on disk, or a sampler of this session that has no name."""
    client = service.client(request.model_id, owner)

    def work() -> Result:
        if request.path is None:
            sampler_id = add_ephemeral(
                service, client, request.sampling_session_seq_id, request.kind == "inflight"
            )
            return json_result({"sampling_session_id": sampler_id, "type": "save_weights_for_sampler"})
        details = _details(client, request.user_metadata)
        path = service.store.save(
            client.id, "sampler_weights", request.path, _files(client), details, request.ttl_seconds, False
        )
        return json_result({"path": path, "type": "save_weights_for_sampler"})

    return service.operate(client, request.seq_id, "save_weights_for_sampler", work)


def save_weights_external(service: Service, owner: str, request: types.SaveWeightsExternalRequest) -> dict:
    """PEFT files to download, encrypted if the request names age recipients."""
    client = service.client(request.model_id, owner)

    def work() -> Result:
        files = _files(client)
        if request.age_encryption_recipients:
            files = _encrypted(files, request.age_encryption_recipients)
        details = _details(client, None)
        path = service.store.save(
            client.id, "external_weights", request.path, files, details, request.ttl_seconds, False
        )
        return json_result({"path": path, "type": "save_weights_external"})

    return service.operate(client, request.seq_id, "save_weights_external", work)


def _encrypted(files: dict[str, Any], recipients: list[str]) -> dict[str, Any]:
    age: Any = pyrage  # a compiled module, of which type checkers see nothing
    tensors = {key: value.contiguous() for key, value in files["adapter_model.safetensors"].items()}
    plain = {**files, "adapter_model.safetensors": as_safetensors(tensors)}
    try:
        keys = [age.x25519.Recipient.from_str(recipient) for recipient in recipients]
        return {f"{name}.age": age.encrypt(content, keys) for name, content in plain.items()}
    except age.RecipientError as error:
        raise StoreError(f"an age recipient is wrong: {error}") from error


def load_weights(service: Service, owner: str, request: types.LoadWeightsRequest) -> dict:
    """Load a checkpoint into a client, or make a client from one (then there is no model_id)."""
    info = service.store.find(request.path, owner)[2]
    if request.model_id is not None:
        client = service.client(request.model_id, owner)
        return service.operate(
            client, request.seq_id, "load_weights", lambda: _load_into(service, client, request)
        )
    service.touch(request.session_id or "", owner)
    base = service.base(request.base_model or info["base_model"])
    layout = service.layout(base, info)

    def finish(client: TrainingClient) -> Result:
        result = _load_into(service, client, request)
        register(service, client, format_of(info) | dict(request.user_metadata or {}))
        return result

    return start_client(service, owner, request, base, layout, 0, finish)


def _load_into(service: Service, client: TrainingClient, request: types.LoadWeightsRequest) -> Result:
    if parse_path(request.path)[1] == "external_weights":
        raise StoreError("external_weights are for download: load a weights/ path")
    stored = service.store.load(request.path, client.owner)
    if request.optimizer and not stored.optimizer and stored.details["step"]:
        raise StoreError(f"{request.path} holds no optimizer state: load it without the optimizer")
    client.state.load(stored.weights, stored.optimizer if request.optimizer else None)
    client.state.steps = stored.details["step"]
    return json_result({"path": request.path, "model_id": client.id, "type": "load_weights"})
