"""The HTTP side: one route a request of the SDK, each naming the SDK call that sends it."""

import asyncio
import base64
import binascii
import contextlib
import hashlib
import hmac
import json
import logging
import re
import time
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any

import pydantic
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from tinker import types

from helpers.stub_tinker import status, support
from helpers.stub_tinker.service import Result, Service
from helpers.stub_tinker.store import StoreError, WriteError
from helpers.stub_tinker.wire import BadRequest

log = logging.getLogger("stub_tinker")

LONG_POLL_SECONDS = 25  # the SDK gives a poll 45 s
MAX_BODY = 64 << 20
MAX_METADATA = 16 << 10  # bytes of JSON
MAX_NAME = 200  # characters of a session's display name
LARGE_BODY = 256 << 10  # parsed beside the event loop
METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]
OPEN_PATHS = ("/api/v1/healthz", "/files/")  # a file's URL carries its own signature
UNUSED_PATHS = ("/api/v1/healthz", "/")  # a look at the server is no use of it


class App:
    """Routes over a `Service`.

    Args:
        keys: the API keys that clients may send; none lets everyone in.
        token: opens the status page, with every client in it.
    """

    def __init__(self, service: Service, keys: list[str], token: str = ""):
        self.service, self.keys, self.token = service, keys, token
        self.last_request = 0.0
        self.started = time.monotonic()
        self.stopping = False
        self.fetched: weakref.WeakSet[Future] = weakref.WeakSet()

    def starlette(self) -> Starlette:
        api = "/api/v1"
        run = api + "/training_runs/{run}"
        checkpoint = run + "/checkpoints/{kind}/{name}"
        self.routes = [
            self.route("POST", f"{api}/client/config", self.client_config),  # every client, once
            self.route("POST", f"{api}/client/dynamic_config", self.dynamic_config),
            self.route(
                "POST",
                f"{api}/create_session",
                self.op(types.CreateSessionRequest, "create_session"),
                new_work=True,
            ),  # ServiceClient()
            self.route("POST", f"{api}/session_heartbeat", self.heartbeat),
            self.route(
                "POST", api + "/sessions/{session}/finish", self.finish_session
            ),  # ServiceClient.close
            self.route("POST", f"{api}/telemetry", self.telemetry),
            self.route("GET", f"{api}/healthz", self.health),
            self.route("GET", f"{api}/get_server_capabilities", self.capabilities),
            self.route("POST", f"{api}/retrieve_future", self.retrieve_future),  # APIFuture.result
            self.route(
                "POST", f"{api}/cancel_future", self.cancel_future
            ),  # a sample whose client waits no more
            self.route(
                "POST",
                f"{api}/create_model",
                self.op(types.CreateModelRequest, "create_model"),
                new_work=True,
            ),  # create_lora_training_client
            self.route("POST", f"{api}/get_info", self.get_info),
            self.route(
                "POST", f"{api}/forward_backward", self.forward_backward, new_work=True
            ),  # forward, forward_backward
            self.route(
                "POST", f"{api}/optim_step", self.op(types.OptimStepRequest, "optim_step"), new_work=True
            ),
            self.route(
                "POST",
                f"{api}/save_weights",
                self.op(types.SaveWeightsRequest, "save_weights"),
                new_work=True,
            ),  # save_state
            self.route(
                "POST",
                f"{api}/load_weights",
                self.op(types.LoadWeightsRequest, "load_weights"),
                new_work=True,
            ),  # load_state
            self.route(
                "POST",
                f"{api}/save_weights_for_sampler",
                self.op(types.SaveWeightsForSamplerRequest, "save_weights_for_sampler"),
                new_work=True,
            ),
            self.route(
                "POST",
                f"{api}/save_weights_external",
                self.op(types.SaveWeightsExternalRequest, "save_weights_external"),
                new_work=True,
            ),
            self.route(
                "POST",
                f"{api}/create_sampling_session",
                self.op(types.CreateSamplingSessionRequest, "create_sampling_session"),
                new_work=True,
            ),
            self.route(
                "POST",
                f"{api}/join_sampling_session",
                self.op(types.JoinSamplingSessionRequest, "join_sampling_session"),
                new_work=True,
            ),
            self.route(
                "POST", f"{api}/asample", self.op(types.SampleRequest, "sample"), new_work=True
            ),  # sample, compute_logprobs
            self.route("GET", api + "/samplers/{sampler}", self.get_sampler),
            self.route("GET", f"{api}/training_runs", self.list_runs),
            self.route("GET", run, self.get_run),
            self.route("GET", f"{run}/checkpoints", self.list_checkpoints),
            self.route("GET", f"{api}/checkpoints", self.list_user_checkpoints),
            self.route("DELETE", checkpoint, self.delete_checkpoint),
            self.route("PUT", f"{checkpoint}/ttl", self.set_ttl),
            self.route("POST", f"{checkpoint}/publish", self.publish),
            self.route("DELETE", f"{checkpoint}/publish", self.unpublish),
            self.route("GET", f"{checkpoint}/external_weights_urls", self.external_weights_urls),
            self.route("POST", f"{api}/weights_info", self.weights_info),
            self.route("POST", f"{api}/copy_weights", self.copy_weights, new_work=True),
            self.route("GET", f"{api}/sessions", self.list_sessions),
            self.route("POST", f"{api}/sessions/search", self.search_sessions),
            self.route("GET", api + "/sessions/{session}", self.get_session),
            self.route(
                "GET", f"{api}/billing/usage/checkpoints/current", self.storage_usage
            ),  # get_current_checkpoint_storage_usage
            self.route("GET", "/files/{run}/{name}/{file}", self.signed_file),
            self.route("GET", "/", self.status),
        ]
        return Starlette(
            routes=[*self.routes, self.route("*", "/{rest:path}", self.not_offered)],
            exception_handlers={HTTPException: _http_error},
        )

    def route(
        self,
        method: str,
        path: str,
        handler: Callable[[Request], Awaitable[Response]],
        new_work: bool = False,
    ) -> Route:
        """A route that checks the key and turns every expected fault into a 4xx with a message.

        Args:
            new_work: refused while the server stops.
        """

        async def guarded(request: Request) -> Response:
            at = request.scope["path"]
            if at not in UNUSED_PATHS:
                self.last_request = asyncio.get_running_loop().time()
            if not at.startswith(OPEN_PATHS) and not self._allowed(request):
                return _error(
                    "the API key is missing or wrong",
                    401,
                    {"WWW-Authenticate": 'Basic realm="stub Tinker backend"'} if at == "/" else None,
                )
            if new_work and self.stopping:
                return _error(
                    "the server is stopping: it takes no new requests. What it accepted is finished, and saved checkpoints are kept",
                    403,
                )
            try:
                return await handler(request)
            except (BadRequest, StoreError) as error:
                return _error(str(error), error.status)
            except pydantic.ValidationError as error:
                first = error.errors(include_url=False, include_context=False)[0]
                return _error(f"{'.'.join(map(str, first['loc'])) or 'the body'}: {first['msg']}", 422)
            except RecursionError:
                return _error("the body is nested too deeply", 400)
            except ClientDisconnect:
                return _error("the client went away", 400)
            except Exception as error:
                log.exception("%s %s failed", method, path)
                return _error(f"the server failed on this request: {type(error).__name__}", 500)

        return Route(path, guarded, methods=METHODS if method == "*" else [method])

    def _presented(self, request: Request) -> str:
        """The key that a request brings: in X-API-Key, or, for the status page, as the password of Basic authentication."""
        kind, _, value = request.headers.get("authorization", "").partition(" ")
        if request.scope["path"] == "/" and kind.lower() == "basic" and "x-api-key" not in request.headers:
            with contextlib.suppress(binascii.Error, UnicodeDecodeError):
                return base64.b64decode(value, validate=True).decode().partition(":")[2]
        return request.headers.get("x-api-key", "")

    def _operator(self, request: Request) -> bool:
        return (
            bool(self.token) and request.scope["path"] == "/" and _same(self._presented(request), self.token)
        )

    def _allowed(self, request: Request) -> bool:
        presented = self._presented(request)
        matches = [
            _same(presented, key) for key in self.keys
        ]  # all of them: the time says nothing about which
        return not self.keys or any(matches) or self._operator(request)

    def owner(self, request: Request) -> str:
        """Whose things a request may see: a hash of the key that it brings, on an open server too."""
        return hashlib.sha256(self._presented(request).encode()).hexdigest()[:16]

    async def call(self, method: str, *arguments: Any) -> Response:
        """Answer with what a method of the service returns, run beside the event loop."""
        return JSONResponse(await asyncio.to_thread(getattr(self.service, method), *arguments))

    def op(self, model: type[pydantic.BaseModel], method: str) -> Callable[[Request], Awaitable[Response]]:
        """A handler for a JSON request of type `model`, answered by the service's `method`."""

        async def handler(request: Request) -> Response:
            return await self.call(method, await _parsed(request, model), self.owner(request))

        return handler

    async def client_config(self, request: Request) -> Response:
        return JSONResponse(
            {
                "parallel_fwdbwd_chunks": False,  # requests of one client then arrive in order
                "sample_join_sampling_session": True,
            }
        )

    async def dynamic_config(self, request: Request) -> Response:
        return JSONResponse({"sample_cancel_enabled": True})

    async def cancel_future(self, request: Request) -> Response:
        await asyncio.to_thread(
            self.service.cancel, _field(await _body(request), "request_id"), self.owner(request)
        )
        return Response(status_code=204)

    async def heartbeat(self, request: Request) -> Response:
        self.service.touch(_field(await _body(request), "session_id"), self.owner(request))
        return JSONResponse({"type": "session_heartbeat"})

    async def finish_session(self, request: Request) -> Response:
        body = await _body(request)
        reason, detail = body.get("reason", {"type": "success"}), body.get("detail")
        if not isinstance(reason, dict) or reason.get("type") not in ("success", "errored", "interrupted"):
            raise BadRequest("reason.type must be success, errored or interrupted")
        if detail is not None and (not isinstance(detail, str) or len(detail) > MAX_METADATA):
            raise BadRequest(f"detail must be a text of at most {MAX_METADATA} characters")
        await asyncio.to_thread(
            self.service.finish_session,
            request.path_params["session"],
            self.owner(request),
            reason["type"],
            detail,
        )
        return Response(status_code=204)

    async def telemetry(self, request: Request) -> Response:
        await _read(request)
        return JSONResponse({"status": "accepted"})

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "service": "stub_tinker"})

    async def status(self, request: Request) -> Response:
        owner = None if not self.keys or self._operator(request) else self.owner(request)
        snapshot = await asyncio.to_thread(status.snapshot, self.service, self.started, owner)
        if self.stopping:
            snapshot["status"] = "stopping"
        if "text/html" not in request.headers.get("accept", ""):
            return JSONResponse(snapshot)
        return HTMLResponse(
            status.page(snapshot),
            headers={
                "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
                "Cache-Control": "no-store",
            },
        )

    async def capabilities(self, request: Request) -> Response:
        return await self.call("capabilities")

    async def retrieve_future(self, request: Request) -> Response:
        """A long poll: 408 with `try_again` when the result takes longer; a failed operation is a 200 with `error`."""
        future = self.service.future(_field(await _body(request), "request_id"), self.owner(request))
        if not future.done():
            waiting = asyncio.wrap_future(future)
            waiting.add_done_callback(
                lambda done: done.cancelled() or done.exception()
            )  # or asyncio logs it as never retrieved
            await asyncio.wait([waiting], timeout=LONG_POLL_SECONDS)
        if not future.done():
            return JSONResponse({"type": "try_again", "queue_state": "active"}, 408)
        fetched = BackgroundTask(self.fetched.add, future)  # once the answer is sent
        error = future.exception()
        if error is None:
            result: Result = future.result()
            return Response(result.body, media_type=result.media_type, background=fetched)
        users = isinstance(error, (BadRequest, StoreError, ValueError)) and not isinstance(error, WriteError)
        if not users:
            log.error(
                "a request failed: %s", error, exc_info=None if isinstance(error, WriteError) else error
            )
        return JSONResponse(
            {"error": _clean(str(error) or type(error).__name__), "category": "user" if users else "server"},
            background=fetched,
        )

    async def get_info(self, request: Request) -> Response:
        return await self.call("get_info", _field(await _body(request), "model_id"), self.owner(request))

    async def forward_backward(self, request: Request) -> Response:
        return await self.call("forward_backward", await _read(request), self.owner(request))

    async def get_sampler(self, request: Request) -> Response:
        sampler_id = request.path_params["sampler"]
        sampler = self.service.sampler(sampler_id, self.owner(request))
        return JSONResponse(
            {"sampler_id": sampler_id, "base_model": sampler.base, "model_path": sampler.model_path}
        )

    async def list_runs(self, request: Request) -> Response:
        owner, accessible = self.owner(request), _accessible(request)
        runs = await asyncio.to_thread(
            self.service.runs, owner, accessible, request.query_params.get("project_id")
        )
        page, cursor = _page(request, runs)
        infos = await asyncio.to_thread(
            lambda: [self.service.training_run(run, owner, accessible) for run in page]
        )
        return JSONResponse({"training_runs": infos, "cursor": cursor})

    async def get_run(self, request: Request) -> Response:
        return await self.call(
            "training_run", request.path_params["run"], self.owner(request), _accessible(request)
        )

    async def list_checkpoints(self, request: Request) -> Response:
        found = await asyncio.to_thread(
            self.service.store.list_checkpoints, self.owner(request), request.path_params["run"]
        )
        return JSONResponse({"checkpoints": found})

    async def list_user_checkpoints(self, request: Request) -> Response:
        page, cursor = _page(
            request, await asyncio.to_thread(self.service.store.list_checkpoints, self.owner(request))
        )
        return JSONResponse({"checkpoints": page, "cursor": cursor})

    async def _change(self, method: str, request: Request, *values: Any) -> Response:
        """Change a checkpoint with a method of the store."""
        await asyncio.to_thread(
            getattr(self.service.store, method), _checkpoint_path(request), self.owner(request), *values
        )
        return Response(status_code=204)

    async def delete_checkpoint(self, request: Request) -> Response:
        return await self._change("delete", request)

    async def set_ttl(self, request: Request) -> Response:
        body = await _body(request)
        if "ttl_seconds" not in body:
            raise BadRequest("ttl_seconds is missing: give seconds, or null for no end")
        return await self._change("set_ttl", request, body["ttl_seconds"])

    async def publish(self, request: Request) -> Response:
        return await self._change("publish", request, True)

    async def unpublish(self, request: Request) -> Response:
        return await self._change("publish", request, False)

    async def external_weights_urls(self, request: Request) -> Response:
        host = request.headers.get("host", "")
        if not re.fullmatch(r"[A-Za-z0-9._:\[\]-]{1,255}", host):
            raise BadRequest("the Host header is no address")
        return await self.call(
            "external_weights_urls",
            _checkpoint_path(request),
            self.owner(request),
            f"{request.scope['scheme']}://{host}",
        )

    async def weights_info(self, request: Request) -> Response:
        return await self.call(
            "weights_info", _field(await _body(request), "tinker_path"), self.owner(request)
        )

    async def copy_weights(self, request: Request) -> Response:
        parsed = await _parsed(request, types.CopyWeightsRequest)
        if "x-tinker-weights-access-token" in request.headers:
            raise BadRequest(NO_TOKEN)
        return await self.call(
            "copy_weights", parsed, self.owner(request), request.headers.get("x-idempotency-key")
        )

    async def list_sessions(self, request: Request) -> Response:
        _accessible(request)
        sessions = await asyncio.to_thread(self.service.store.list_sessions, self.owner(request))
        return JSONResponse({"sessions": _page(request, [key for key, _ in sessions])[0]})

    async def get_session(self, request: Request) -> Response:
        _accessible(request)
        return await self.call("get_session", request.path_params["session"], self.owner(request))

    async def search_sessions(self, request: Request) -> Response:
        return await self.call(
            "search_sessions", await _parsed(request, types.SessionSearchRequest), self.owner(request)
        )

    async def storage_usage(self, request: Request) -> Response:
        return await self.call("storage_usage", self.owner(request), request.query_params.get("project_id"))

    async def signed_file(self, request: Request) -> Response:
        values, query = request.path_params, request.query_params
        expires = _number(query.get("expires", ""), "expires")
        path = f"tinker://{values['run']}/external_weights/{values['name']}"
        return FileResponse(
            await asyncio.to_thread(
                self.service.store.signed_file, path, values["file"], expires, query.get("signature", "")
            )
        )

    async def not_offered(self, request: Request) -> Response:
        path, method = request.scope["path"], request.method
        others = sorted(
            {m for route in self.routes if route.path_regex.match(path) for m in route.methods or ()}
            - {"HEAD"}
        )
        if others:
            return _error(
                f"{path} takes {' or '.join(others)}, not {method}", 405, {"Allow": ", ".join(others)}
            )
        sdk_method = request.headers.get("x-sdk-method", "")
        if why := support.reason(sdk_method):
            return _error(f"the stub Tinker backend does not offer {sdk_method}: {why}", 404)
        return _error(f"the stub Tinker backend does not offer {method} {path}", 404)


NO_TOKEN = f"weights_access_token is not offered by the stub backend: {support.NOT_OFFERED_OPTIONS['weights_access_token']}"


def _same(presented: str, key: str) -> bool:
    return hmac.compare_digest(presented.encode("utf-8", "replace"), key.encode())


def _clean(message: str) -> str:
    """A message that can be sent: bounded, and valid text even where it quotes what is not."""
    message = message.encode("utf-8", "replace").decode()
    return message if len(message) <= 4000 else f"{message[:4000]}…"


def _error(message: str, status_code: int, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"detail": _clean(message)}, status_code, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(str(error.detail), error.status_code, dict(error.headers or {}))


# Reading a request


async def _read(request: Request) -> bytes:
    length, encoding = (
        request.headers.get("content-length", ""),
        request.headers.get("content-encoding", "identity"),
    )
    too_large = BadRequest(f"the body is over {MAX_BODY >> 20} MiB: send smaller batches", 413)
    if length.isascii() and length.isdigit() and (len(length) > 18 or int(length) > MAX_BODY):
        raise too_large
    if encoding not in ("identity", "zstd"):
        raise BadRequest(f"content-encoding {encoding!r} is not offered: zstd is", 415)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise too_large
    return await asyncio.to_thread(_unpacked, bytes(body), too_large) if encoding == "zstd" else bytes(body)


def _unpacked(body: bytes, too_large: BadRequest) -> bytes:
    """Decompressed a piece at a time, so that a small body can't fill the memory."""
    import zstandard

    content = bytearray()
    try:
        with zstandard.ZstdDecompressor(max_window_size=MAX_BODY).stream_reader(body) as reader:
            while piece := reader.read(1 << 20):
                content += piece
                if len(content) > MAX_BODY:
                    raise too_large
    except (zstandard.ZstdError, MemoryError) as error:
        raise BadRequest(f"the body is not zstd: {error}") from error
    return bytes(content)


def _whole_number(text: str) -> int:
    value = int(text) if len(text) < 20 else 1 << 64
    if not -(1 << 63) <= value < 1 << 63:
        raise BadRequest(f"the body holds a whole number of more than 64 bits: {text[:30]}…")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise BadRequest(f"the body holds a number that is too large: {text[:30]}")
    return value


def _not_a_number(text: str) -> float:
    raise BadRequest(f"the body holds {text}: numbers must be finite")


def _object(raw: bytes) -> dict:
    """A JSON object of ordinary values: finite numbers, whole numbers of 64 bits, valid text.

    Raises:
        BadRequest: the body is something else.
    """
    try:
        body = json.loads(
            raw.decode() or "{}", parse_int=_whole_number, parse_float=_finite, parse_constant=_not_a_number
        )
        if re.search(rb"\\u[dD][89a-fA-F]", raw):  # half a surrogate pair is no character
            json.dumps(body, ensure_ascii=False).encode()
    except UnicodeError as error:
        raise BadRequest(
            f"the body is not valid UTF-8 text: {error.reason if isinstance(error, UnicodeDecodeError) else 'half a surrogate pair'}"
        ) from error
    except json.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object")
    return body


async def _body(request: Request) -> dict:
    raw = await _read(request)
    return await asyncio.to_thread(_object, raw) if len(raw) > LARGE_BODY else _object(raw)


async def _parsed(request: Request, model: type[pydantic.BaseModel]) -> Any:
    raw = await _read(request)
    return (
        await asyncio.to_thread(_validated, raw, model) if len(raw) > LARGE_BODY else _validated(raw, model)
    )


def _validated(raw: bytes, model: type[pydantic.BaseModel]) -> Any:
    """A request of the SDK, with user metadata and names of a bounded size.

    Raises:
        BadRequest: it is not JSON, too large, or asks for what is not offered.
        pydantic.ValidationError: a field is missing or of another type.
    """
    body = _object(raw)
    if body.get("weights_access_token") is not None:
        raise BadRequest(NO_TOKEN)
    for name in ("user_metadata", "tags"):
        if len(json.dumps(body.get(name))) > MAX_METADATA:
            raise BadRequest(f"{name} is over {MAX_METADATA >> 10} KiB")
    if isinstance(body.get("user_metadata"), dict):  # the SDK reads texts back
        body["user_metadata"] = {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in body["user_metadata"].items()
        }
    for name in ("display_name", "project_id", "destination_project_id", "sdk_version"):
        if isinstance(body.get(name), str) and len(body[name]) > MAX_NAME:
            raise BadRequest(f"{name} is over {MAX_NAME} characters")
    return model.model_validate(body)


def _field(body: dict, name: str) -> str:
    if not isinstance(body.get(name), str):
        raise BadRequest(f"{name} must be a string")
    return body[name]


def _number(text: str, name: str) -> int:
    if not re.fullmatch("[0-9]{1,18}", text):
        raise BadRequest(f"{name} must be a whole number of at least 0, got {text[:30]!r}")
    return int(text)


def _page(request: Request, rows: list) -> tuple[list, dict]:
    offset, limit = (
        _number(request.query_params.get(name, default), name)
        for name, default in (("offset", "0"), ("limit", "100"))
    )
    return rows[offset : offset + limit], {"offset": offset, "limit": limit, "total_count": len(rows)}


def _accessible(request: Request) -> bool:
    scope = request.query_params.get("access_scope", "owned")
    if scope not in ("owned", "accessible"):
        raise BadRequest(f"access_scope must be owned or accessible, got {scope[:30]!r}")
    return scope == "accessible"


def _checkpoint_path(request: Request) -> str:
    values = request.path_params
    return f"tinker://{values['run']}/{values['kind']}/{values['name']}"
