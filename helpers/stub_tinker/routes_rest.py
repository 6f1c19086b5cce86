"""Routes of what is there: runs, checkpoints, sessions, files, the status page. Each names its SDK call."""

import re
from collections.abc import Callable

from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from tinker import types

from helpers.stub_folder import NONCE
from helpers.stub_tinker import catalogue, sessions, status
from helpers.stub_tinker.bodies import NO_TOKEN
from helpers.stub_tinker.calls import BY_ITSELF, Call, Endpoint, operation
from helpers.stub_tinker.errors import BadRequest
from helpers.stub_tinker.snapshot import snapshot

PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}


async def _health(call: Call) -> Response:
    nonce = call.query("nonce")
    proof = {"proof": call.running.proof(nonce)} if re.fullmatch(NONCE, nonce) else {}
    return JSONResponse({"status": "ok", "service": "stub_tinker", **proof})


async def _capabilities(call: Call) -> Response:
    return JSONResponse(await call.beside(catalogue.capabilities, call.service))


async def _status(call: Call) -> Response:
    owner = None if call.running.access.is_operator(call.request) else call.owner
    seen = await call.beside(snapshot, call.running, owner)
    if call.running.stopping:
        seen["status"] = "stopping"
    if "text/html" not in call.request.headers.get("accept", ""):
        return JSONResponse(seen)
    return HTMLResponse(status.page(seen), headers=PAGE_HEADERS)


# Training runs and checkpoints


async def _list_runs(call: Call) -> Response:
    accessible = call.accessible
    project = call.request.query_params.get("project_id")
    runs = await call.beside(catalogue.runs, call.service, call.owner, accessible, project)
    page, cursor = call.page(runs)
    infos = await call.beside(
        lambda: [catalogue.training_run(call.service, call.owner, run, accessible) for run in page]
    )
    return JSONResponse({"training_runs": infos, "cursor": cursor})


async def _get_run(call: Call) -> Response:
    return await call.answer(catalogue.training_run, call.part("run"), call.accessible)


async def _list_checkpoints(call: Call) -> Response:
    found = await call.beside(call.service.store.list_checkpoints, call.owner, call.part("run"))
    return JSONResponse({"checkpoints": found})


async def _list_user_checkpoints(call: Call) -> Response:
    page, cursor = call.page(await call.beside(call.service.store.list_checkpoints, call.owner))
    return JSONResponse({"checkpoints": page, "cursor": cursor})


async def _changed(call: Call, change: Callable[..., None], *values: object) -> Response:
    """Change the checkpoint that the address names with a method of the store."""
    await call.beside(change, call.checkpoint, call.owner, *values)
    return Response(status_code=204)


async def _delete_checkpoint(call: Call) -> Response:
    return await _changed(call, call.service.store.delete)


async def _set_ttl(call: Call) -> Response:
    body = await call.body()
    if "ttl_seconds" not in body:
        raise BadRequest("ttl_seconds is missing: give seconds, or null for no end")
    return await _changed(call, call.service.store.set_ttl, body["ttl_seconds"])


async def _publish(call: Call) -> Response:
    return await _changed(call, call.service.store.publish, True)


async def _unpublish(call: Call) -> Response:
    return await _changed(call, call.service.store.publish, False)


async def _weights_info(call: Call) -> Response:
    return await call.answer(catalogue.weights_info, await call.text("tinker_path"))


async def _copy_weights(call: Call) -> Response:
    parsed = await call.parsed(types.CopyWeightsRequest)
    headers = call.request.headers
    if "x-tinker-weights-access-token" in headers:
        raise BadRequest(NO_TOKEN)
    return await call.answer(catalogue.copy_weights, parsed, headers.get("x-idempotency-key"))


async def _storage_usage(call: Call) -> Response:
    return await call.answer(catalogue.storage_usage, call.request.query_params.get("project_id"))


# Files of external weights


async def _external_weights_urls(call: Call) -> Response:
    urls = call.service.signed_urls.urls
    return JSONResponse(await call.beside(urls, call.checkpoint, call.owner, call.here))


async def _signed_file(call: Call) -> Response:
    path = f"tinker://{call.part('run')}/external_weights/{call.part('name')}"
    expires, owner, signature = call.number("expires"), call.query("for"), call.query("signature")
    find = call.service.signed_urls.file
    return FileResponse(await call.beside(find, path, call.part("file"), expires, owner, signature))


# Sessions


async def _list_sessions(call: Call) -> Response:
    _ = call.accessible  # one's own in both scopes; an unknown scope is refused
    rows = await call.beside(call.service.session_store.all_of, call.owner)
    return JSONResponse({"sessions": call.page([session for session, _ in rows])[0]})


async def _get_session(call: Call) -> Response:
    _ = call.accessible
    return await call.answer(sessions.get_session, call.part("session"))


async def _trace_export(call: Call) -> Response:
    return JSONResponse(
        await call.beside(sessions.trace_export, call.service, call.owner, call.part("session"), call.here)
    )


async def _signed_trace(call: Call) -> Response:
    session, owner = call.part("session"), call.query("for")
    signed = call.number("expires"), owner, call.query("signature")
    call.service.signed_urls.check_trace(session, *signed)
    trace = await call.beside(call.service.timeline.trace, owner, session)
    return Response(trace, media_type="application/octet-stream")


API = "/api/v1"
RUN = API + "/training_runs/{run}"
CHECKPOINT = RUN + "/checkpoints/{kind}/{name}"
ENDPOINTS = [
    Endpoint("GET", f"{API}/healthz", BY_ITSELF, _health),
    Endpoint(
        "GET",
        f"{API}/get_server_capabilities",
        "ServiceClient.get_server_capabilities, RestClient.get_server_capabilities",
        _capabilities,
    ),
    # Training runs and checkpoints
    Endpoint("GET", f"{API}/training_runs", "RestClient.list_training_runs", _list_runs),
    Endpoint("GET", RUN, "RestClient.get_training_run, RestClient.get_training_run_by_tinker_path", _get_run),
    Endpoint("GET", f"{RUN}/checkpoints", "RestClient.list_checkpoints", _list_checkpoints),
    Endpoint("GET", f"{API}/checkpoints", "RestClient.list_user_checkpoints", _list_user_checkpoints),
    Endpoint(
        "DELETE",
        CHECKPOINT,
        "RestClient.delete_checkpoint, RestClient.delete_checkpoint_from_tinker_path",
        _delete_checkpoint,
    ),
    Endpoint("PUT", f"{CHECKPOINT}/ttl", "RestClient.set_checkpoint_ttl_from_tinker_path", _set_ttl),
    Endpoint("POST", f"{CHECKPOINT}/publish", "RestClient.publish_checkpoint_from_tinker_path", _publish),
    Endpoint(
        "DELETE", f"{CHECKPOINT}/publish", "RestClient.unpublish_checkpoint_from_tinker_path", _unpublish
    ),
    Endpoint("POST", f"{API}/weights_info", "RestClient.get_weights_info_by_tinker_path", _weights_info),
    Endpoint(
        "POST",
        f"{API}/copy_weights",
        "RestClient.copy_weights, ServiceClient.copy_weights",
        _copy_weights,
        new_work=True,
    ),
    Endpoint(
        "GET",
        f"{API}/billing/usage/checkpoints/current",
        "RestClient.get_current_checkpoint_storage_usage",
        _storage_usage,
    ),
    # Files of external weights
    Endpoint(
        "GET",
        f"{CHECKPOINT}/external_weights_urls",
        "RestClient.get_external_weights_urls",
        _external_weights_urls,
    ),
    Endpoint("GET", "/files/{run}/{name}/{file}", BY_ITSELF, _signed_file),
    # Sessions
    Endpoint("GET", f"{API}/sessions", "RestClient.list_sessions", _list_sessions),
    Endpoint(
        "POST",
        f"{API}/sessions/search",
        "RestClient.search_sessions",
        operation(types.SessionSearchRequest, sessions.search_sessions),
    ),
    Endpoint("GET", API + "/sessions/{session}", "RestClient.get_session", _get_session),
    Endpoint(
        "GET", API + "/sessions/{session}/trace_export", "RestClient.export_session_trace", _trace_export
    ),
    Endpoint("GET", "/files/{session}/trace", BY_ITSELF, _signed_trace),
    # For people
    Endpoint("GET", "/", BY_ITSELF, _status),
]
