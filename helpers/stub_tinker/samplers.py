"""Samplers. The adapters that a session used last are in memory, its others on disk until asked again."""

import logging
import time
from collections.abc import Callable

import torch
from tinker import types

from helpers.stub_tinker.checkpoint_store import parse_path
from helpers.stub_tinker.errors import BadRequest, RequestError, StoreError
from helpers.stub_tinker.lora import Adapter, Layout
from helpers.stub_tinker.service import SamplingSession, Service, TrainingClient

log = logging.getLogger("stub_tinker")

KEPT_ADAPTERS = 3  # of a session: who makes a sampler at each step never says which it still needs


def create_sampling_session(
    service: Service, owner: str, request: types.CreateSamplingSessionRequest
) -> dict:
    """A sampler of a base model, or of a checkpoint."""
    service.touch(request.session_id, owner)
    sampler_id = f"{request.session_id}:sample:{request.sampling_session_seq_id}"
    if sampler_id not in service.samplers:
        service.check_room("samplers", owner, service.samplers)
        if request.model_path is None:
            sampler = SamplingSession(request.session_id, service.base(request.base_model or ""), owner)
        else:
            sampler = _of_checkpoint(service, owner, request.session_id, request.model_path)
        service.samplers[sampler_id] = sampler
        if sampler.adapter:
            service.engine.call(lambda: _set_aside(service, _of_session(service, request.session_id)))
    return {"type": "create_sampling_session", "sampling_session_id": sampler_id}


def _of_checkpoint(service: Service, owner: str, session: str, path: str) -> SamplingSession:
    if parse_path(path)[1] == "external_weights":
        raise StoreError("external_weights are for download: sample from a sampler_weights/ path")
    _, details, info = service.store.find(path, owner)
    base, checkpoint = service.base(info["base_model"]), details.get("id") or details["time"]
    for other in list(service.samplers.values()):  # one copy in memory for all who use the same checkpoint
        if other.checkpoint == checkpoint and (adapter := other.adapter):
            return SamplingSession(session, base, owner, adapter, path, other.layout, checkpoint)
    tensors = service.store.load(path, owner).weights
    layout = service.layout(base, info)

    def make() -> Adapter:
        flat = torch.empty(layout.size, device=service.device)
        for key, view in layout.named(flat).items():
            view.copy_(tensors[key])
        return Adapter(layout, flat, service.dtype)

    adapter = service.engine.call(lambda: _new_adapter(service, owner, layout, make))
    return SamplingSession(session, base, owner, adapter, path, layout, checkpoint)


def _new_adapter(service: Service, owner: str, layout: Layout, make: Callable[[], Adapter]) -> Adapter:
    """What `make` makes, once there is room. On the engine's thread.

    Raises:
        BadRequest: there is no room, even with the owner's other adapters set aside.
    """
    size = layout.frozen_bytes(service.dtype)
    try:
        hold = service.budgets.hold(owner, memory=size)
    except BadRequest:
        _set_aside(service, [s for s in list(service.samplers.values()) if s.owner == owner], keep=0)
        hold = service.budgets.hold(owner, memory=size)
    with hold:
        adapter = make()
        hold.while_alive(adapter)
    return adapter


def add_ephemeral(service: Service, client: TrainingClient, number: int | None, inflight: bool) -> str:
    """A sampler of a training client's weights as they are now. On the engine's thread.

    Args:
        inflight: all inflight samplers of this client use these weights from now on.

    Returns:
        Its id.
    """
    sampler_id = f"{client.session}:sample:{number}"
    service.check_room("samplers", client.owner, service.samplers)
    adapter = _new_adapter(service, client.owner, client.layout, lambda: client.state.snapshot(service.dtype))
    sampler = SamplingSession(client.session, client.base, client.owner, adapter, layout=client.layout)
    if inflight:
        sampler.inflight_of = client.id
        for other in list(service.samplers.values()):
            if other.inflight_of == client.id:
                other.adapter = adapter
    service.samplers[sampler_id] = sampler
    _set_aside(service, _of_session(service, client.session))
    return sampler_id


def _of_session(service: Service, session: str) -> list[SamplingSession]:
    return [sampler for sampler in list(service.samplers.values()) if sampler.session == session]


def _set_aside(service: Service, samplers: list[SamplingSession], keep: int = KEPT_ADAPTERS) -> None:
    """Write the adapters of samplers to disk, but for the last used ones; of these, only the last stays ready
    to sample. On the engine's thread.
    """
    held = [(s, s.adapter) for s in samplers if s.adapter and not s.inflight_of]
    by_use = sorted(held, key=lambda pair: pair[0].used)
    for _, adapter in by_use[:-1]:
        adapter.rest()
    for sampler, adapter in by_use[: max(len(by_use) - keep, 0)]:
        try:
            sampler.file = sampler.file or service.session_store.set_aside(
                sampler.session, sampler.owner, adapter.flat
            )
        except RequestError as error:
            log.warning("an adapter stays in memory: %s", error)
            return
        sampler.adapter = None


def adapter_of(service: Service, sampler: SamplingSession) -> Adapter | None:
    """The adapter to sample with, read back if it was set aside; None for the base model."""
    sampler.used, adapter = time.monotonic(), sampler.adapter
    if adapter or not sampler.file:
        return adapter
    return service.engine.call(lambda: _read_back(service, sampler))


def _read_back(service: Service, sampler: SamplingSession) -> Adapter:
    adapter = sampler.adapter
    if adapter is None:
        assert sampler.file and sampler.layout, "only an adapter that was in memory is set aside"
        file, layout = sampler.file, sampler.layout

        def make() -> Adapter:
            flat = service.session_store.read_back(file).to(service.device)
            return Adapter(layout, flat, service.dtype)

        adapter = sampler.adapter = _new_adapter(service, sampler.owner, layout, make)
        _set_aside(service, _of_session(service, sampler.session))
    return adapter


def get_sampler(service: Service, owner: str, sampler_id: str) -> dict:
    sampler = service.sampler(sampler_id, owner)
    return {"sampler_id": sampler_id, "base_model": sampler.base, "model_path": sampler.model_path}


def join_sampling_session(service: Service, owner: str, request: types.JoinSamplingSessionRequest) -> dict:
    """A number for one more process that uses a sampler: its requests then have ids of their own."""
    sampler = service.sampler(request.sampling_session_id, owner)
    return {"type": "join_sampling_session", "client_counter": next(sampler.numbers)}
