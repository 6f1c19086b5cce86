"""What a server is doing, as data: totals, a row for each learner and for each session. status.py shows it to
people.
"""

import time
from typing import Any

import psutil
import torch

from helpers.stub_tinker.calls import Running
from helpers.stub_tinker.service import Service, Session
from helpers.stub_tinker.status import COLUMNS

MIB = 1 << 20
MEASURED = 2000  # tokens that make a speed worth stating


def snapshot(running: Running, owner: str | None) -> dict:
    """Totals of the server, a row for each key that was seen since its start, and one for each live session.

    Args:
        owner: whose rows to give; None for all. Sessions of others are counted in one row.
    """
    service, now = running.service, time.monotonic()
    queued = service.engine.queued_by_session()
    sessions = list(service.sessions.items())
    own, others = [], []
    for session_id, session in sessions:
        row = _row(service, session_id, session) | {"queued": queued[session_id]}
        (own if session.owner == owner or owner is None else others).append(row)
    if others:
        summed = {key: sum(row[key] for row in others) for key in COLUMNS if key != "name"}
        own.append({"session": None, "name": f"{len(others)} of other keys", **summed})
    alive, turns = {session.owner for _, session in sessions}, dict(service.engine.last_turns)
    refused = running.refused_keys
    return _totals(service) | {
        "uptime_seconds": int(now - running.started),
        "learners": service.learners.rows(owner, alive, turns),
        "class": _class(service),
        "refused_keys": {"count": refused.count, "seconds_ago": int(now - refused.at), "from": refused.host}
        if refused.count and owner is None
        else None,
        "clients": own,
    }


def _class(service: Service) -> dict | None:
    """How long the class takes for a notebook at the speeds seen here so far; without a number until enough
    was trained and sampled.
    """
    if (roster := service.learners.roster) is None:
        return None
    total, busy = service.usage.total, dict(service.engine.busy)
    training = busy.pop("train", 0.0)
    sampling = sum(busy.values())
    told: dict[str, Any] = {"learners": len(roster.names), "notebook": roster.notebook, "minutes": None}
    told["cores"] = torch.get_num_threads()
    measured = total.tokens_trained >= MEASURED and total.tokens_sampled >= MEASURED
    if measured and training and sampling:  # tokens are counted a moment before the time that they took
        trained, sampled = total.tokens_trained / training, total.tokens_sampled / sampling
        one = roster.trained / trained + roster.sampled / sampled
        told["minutes"] = len(roster.names) * one / 60
        told |= {"trained_per_second": round(trained), "sampled_per_second": round(sampled)}
    return told


def _totals(service: Service) -> dict:
    total = service.usage.total
    trained, sampled = total.rates()
    return {
        "status": "ok",
        "service": "stub_tinker",
        "base_models": list(service.engine.bases),
        "precision": str(service.dtype).split(".")[-1],
        "device": service.device.type,
        "sessions": service.active_sessions(),
        "training_clients": len(service.clients),
        "samplers": len(service.samplers),
        "queued": service.engine.queued,
        "tokens_trained": total.tokens_trained,
        "tokens_sampled": total.tokens_sampled,
        "trained_per_second": round(trained, 1),
        "sampled_per_second": round(sampled, 1),
        "memory_mib": psutil.Process().memory_info().rss // MIB,
    }


def _row(service: Service, session_id: str, session: Session) -> dict:
    clients = [c for c in list(service.clients.values()) if c.session == session_id]
    samplers = [s for s in list(service.samplers.values()) if s.session == session_id]
    used = service.usage.of(session_id)
    trained, sampled = used.rates()
    held = tensor_bytes([*(c.state for c in clients), *(s.adapter for s in samplers)])
    return {
        "session": session_id,
        "name": session.display_name or service.learners.name(session.owner),
        "training_clients": len(clients),
        "samplers": len(samplers),
        "requests": used.requests,
        "tokens_trained": used.tokens_trained,
        "trained_per_second": round(trained, 1),
        "tokens_sampled": used.tokens_sampled,
        "sampled_per_second": round(sampled, 1),
        "memory_mib": round(held / MIB, 1),
    }


def tensor_bytes(objects: list[Any]) -> int:
    """Bytes of all tensors that these objects hold, each storage once."""
    storages: dict[int, int] = {}
    seen: set[int] = set()
    left = list(objects)
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor) and value.is_mkldnn:  # oneDNN's own layout, which tells no storage
            storages[id(value)] = value.numel() * value.element_size()
        elif isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            left.append(value.grad if value.is_leaf else None)
        else:
            left.extend(_parts(value))
    return sum(storages.values())


def _parts(value: Any) -> list[Any]:
    """What a value of ours or a container holds."""
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, list | tuple):
        return list(value)
    ours = hasattr(value, "__dict__") and type(value).__module__.startswith("helpers.stub_tinker")
    return list(vars(value).values()) if ours and not isinstance(value, torch.nn.Module) else []
