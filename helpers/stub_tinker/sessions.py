"""Sessions: one for each ServiceClient, from its first request until it says how it ended."""

import uuid
from datetime import datetime

from tinker import types

from helpers.stub_tinker.disk import now
from helpers.stub_tinker.service import Service, Session


def create_session(service: Service, owner: str, request: types.CreateSessionRequest) -> dict:
    service.check_room("sessions", owner, service.sessions)
    session_id = str(uuid.uuid4())
    record = {
        "owner": owner,
        "created": now().isoformat(),
        "user_metadata": dict(request.user_metadata or {}),
        "display_name": request.display_name,
        "project_id": request.project_id,
        "tags": request.tags,
        "sdk_version": request.sdk_version,
    }
    service.session_store.save(session_id, record)
    service.sessions[session_id] = Session(owner, request.display_name)
    service.usage.open(session_id)
    service.learners.of(owner).came(session_id, record["user_metadata"])
    return {"session_id": session_id, "type": "create_session"}


def finish_session(service: Service, owner: str, session_id: str, reason: str, detail: str | None) -> None:
    """Note how a session ended, the first time it is said, and give back its memory."""
    record = service.session_store.read(session_id, owner)
    service.free(session_id)
    if "finished" not in record:
        finished = {"reason": reason, "detail": detail}
        service.session_store.save(session_id, {**record, "finished": finished})


def get_session(service: Service, owner: str, session_id: str) -> dict:
    """A session, ended ones too. Runs are kept; samplers are known while the session lives."""
    record = service.session_store.read(session_id, owner)
    infos = service.store.list_runs(owner)
    runs = [info["training_run_id"] for info in infos if info.get("session") == session_id]
    samplers = list(service.samplers.items())
    return {
        "training_run_ids": runs[::-1],
        "sampler_ids": [key for key, sampler in samplers if sampler.session == session_id],
        "user_metadata": record.get("user_metadata"),
        "display_name": record.get("display_name"),
    }


def trace_export(service: Service, owner: str, session_id: str, here: str) -> dict:
    """Where the trace of a session can be fetched, ended ones too."""
    service.session_store.read(session_id, owner)
    if not service.timeline.has(owner, session_id):
        why = "no request of it was done since the server's start, or very many came later"
        return {"status": "failed", "error": f"there is nothing to show of this session: {why}"}
    return {"status": "ready", "url": service.signed_urls.trace_url(session_id, owner, here)}


def search_sessions(service: Service, owner: str, request: types.SessionSearchRequest) -> dict:
    """The caller's sessions that match, newest first."""
    everything = service.session_store.all_of(owner)
    found = [row for row in everything if _matches(service, owner, request, *row)]
    if request.cursor:
        last = request.cursor.last_created_at, request.cursor.last_session_id
        found = [row for row in found if (datetime.fromisoformat(row[1]["created"]), row[0]) < last]
    page, more = found[: request.limit], len(found) > request.limit
    sizes = _checkpoint_sizes(service, owner)
    cursor = {"last_created_at": page[-1][1]["created"], "last_session_id": page[-1][0]} if more else None
    return {
        "sessions": [_described(service, owner, key, record, sizes.get(key, [])) for key, record in page],
        "next_cursor": cursor,
    }


def _checkpoint_sizes(service: Service, owner: str) -> dict[str | None, list[int]]:
    """Bytes of each checkpoint, by the session that made its run."""
    sizes: dict[str | None, list[int]] = {}
    for info in service.store.list_runs(owner):
        checkpoints = service.store.list_checkpoints(owner, info["training_run_id"])
        sizes.setdefault(info.get("session"), []).extend(c["size_bytes"] for c in checkpoints)
    return sizes


def _described(service: Service, owner: str, session_id: str, record: dict, sizes: list[int]) -> dict:
    return {
        "session_id": session_id,
        "created_at": record["created"],
        "owner": owner,
        "project_id": _project(record),
        "status": _status(service, session_id, record),
        "checkpoints_count": len(sizes),
        "display_name": record.get("display_name"),
        "user_metadata": record.get("user_metadata"),
        "checkpoint_storage_bytes": sum(sizes),
    }


def _project(record: dict) -> str:
    return record.get("project_id") or "default"


def _status(service: Service, session_id: str, record: dict) -> dict | None:
    if finished := record.get("finished"):
        reason = {"type": finished["reason"]}
        return {"type": "client_finished", "reason": reason, "detail": finished["detail"]}
    return {"type": "active"} if session_id in service.sessions else None


def _matches(
    service: Service, owner: str, request: types.SessionSearchRequest, session_id: str, record: dict
) -> bool:
    """Whether a session is one of those that a search asks for."""
    if (request.session_id or request.display_name) and not (
        session_id == request.session_id or _is_named(record, request.display_name)
    ):
        return False
    if request.owner.type == "user" and owner not in request.owner.owner_urns:
        return False
    if request.project_ids is not None and _project(record) not in request.project_ids:
        return False
    metadata = record.get("user_metadata") or {}
    if any(metadata.get(key) != value for key, value in request.user_metadata.items()):
        return False
    return request.statuses is None or _has_status(_status(service, session_id, record), request.statuses)


def _is_named(record: dict, words: str | None) -> bool:
    """Whether every word stands in the session's name, in any order and case."""
    name = (record.get("display_name") or "").lower()
    return words is not None and all(word in name for word in words.lower().split())


def _has_status(status: dict | None, wanted: list) -> bool:
    if status is None:
        return False
    for query in wanted:
        if status["type"] == query.type and (
            query.type != "client_finished" or not query.reasons or status["reason"]["type"] in query.reasons
        ):
            return True
    return False
