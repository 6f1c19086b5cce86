"""The HTTP side: one route a request of the SDK, each naming the SDK call that sends it."""

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
from collections.abc import Awaitable, Callable

import pydantic
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from tinker import types

from helpers.stub_tinker.service import JSON, Result, Service
from helpers.stub_tinker.store import StoreError
from helpers.stub_tinker.wire import BadRequest

log = logging.getLogger("stub_tinker")

LONG_POLL_SECONDS = 25  # the SDK gives a poll 45 s
MAX_BODY = 64 << 20
OPEN_PATHS = ("/api/v1/healthz", "/files/")  # a file's URL carries its own signature


class App:
    """Routes over a `Service`."""

    def __init__(self, service: Service, api_key: str | None):
        self.service, self.api_key = service, api_key
        self.last_request = 0.0

    def starlette(self) -> Starlette:
        api = "/api/v1"
        run = api + "/training_runs/{run}"
        checkpoint = run + "/checkpoints/{kind}/{name}"
        routes = [
            self.route("POST", f"{api}/client/config", self.client_config),  # every client, once
            self.route("POST", f"{api}/client/dynamic_config", self.dynamic_config),
            self.route("POST", f"{api}/create_session", self.create_session),  # ServiceClient()
            self.route("POST", f"{api}/session_heartbeat", self.heartbeat),
            self.route("POST", api + "/sessions/{session}/finish", self.finish_session),  # ServiceClient.close
            self.route("POST", f"{api}/telemetry", self.telemetry),
            self.route("GET", f"{api}/healthz", self.health),
            self.route("GET", f"{api}/get_server_capabilities", self.capabilities),
            self.route("POST", f"{api}/retrieve_future", self.retrieve_future),  # APIFuture.result
            self.route("POST", f"{api}/create_model", self.op(types.CreateModelRequest, "create_model")),  # create_lora_training_client
            self.route("POST", f"{api}/get_info", self.get_info),
            self.route("POST", f"{api}/forward_backward", self.forward_backward),  # forward, forward_backward
            self.route("POST", f"{api}/optim_step", self.op(types.OptimStepRequest, "optim_step")),
            self.route("POST", f"{api}/save_weights", self.op(types.SaveWeightsRequest, "save_weights")),  # save_state
            self.route("POST", f"{api}/load_weights", self.op(types.LoadWeightsRequest, "load_weights")),  # load_state
            self.route("POST", f"{api}/save_weights_for_sampler", self.op(types.SaveWeightsForSamplerRequest, "save_weights_for_sampler")),
            self.route("POST", f"{api}/save_weights_external", self.op(types.SaveWeightsExternalRequest, "save_weights_external")),
            self.route("POST", f"{api}/create_sampling_session", self.op(types.CreateSamplingSessionRequest, "create_sampling_session")),
            self.route("POST", f"{api}/asample", self.op(types.SampleRequest, "sample")),  # sample, compute_logprobs
            self.route("GET", api + "/samplers/{sampler}", self.get_sampler),
            self.route("GET", f"{api}/training_runs", self.list_runs),
            self.route("GET", run, self.get_run),
            self.route("GET", f"{run}/checkpoints", self.list_checkpoints),
            self.route("GET", f"{api}/checkpoints", self.list_user_checkpoints),
            self.route("DELETE", checkpoint, self.delete_checkpoint),
            self.route("PUT", f"{checkpoint}/ttl", self.set_ttl),
            self.route("GET", f"{checkpoint}/external_weights_urls", self.external_weights_urls),
            self.route("POST", f"{api}/weights_info", self.weights_info),
            self.route("GET", f"{api}/sessions", self.list_sessions),
            self.route("GET", api + "/sessions/{session}", self.get_session),
            self.route("GET", "/files/{run}/{name}/{file}", self.signed_file),
            self.route("GET", "/", self.status),
            self.route("*", "/{rest:path}", self.not_offered),
        ]
        return Starlette(routes=routes)

    def route(self, method: str, path: str, handler: Callable[[Request], Awaitable[Response]]) -> Route:
        """A route that checks the key and turns every expected fault into a 4xx with a message."""

        async def guarded(request: Request) -> Response:
            self.last_request = asyncio.get_running_loop().time()
            if not request.url.path.startswith(OPEN_PATHS) and not self._allowed(request):
                return _error("the API key is missing or wrong", 401)
            try:
                return await handler(request)
            except (BadRequest, StoreError) as error:
                return _error(str(error), error.status)
            except pydantic.ValidationError as error:
                first = error.errors(include_url=False, include_context=False)[0]
                return _error(f"{'.'.join(map(str, first['loc']))}: {first['msg']}", 422)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                return _error(f"the body is not JSON: {error}", 400)

        methods = ["GET", "POST", "PUT", "DELETE", "PATCH"] if method == "*" else [method]
        return Route(path, guarded, methods=methods)

    def _allowed(self, request: Request) -> bool:
        return self.api_key is None or hmac.compare_digest(request.headers.get("x-api-key", "").encode(), self.api_key.encode())

    def owner(self, request: Request) -> str:
        """Whose runs a request may see: a hash of its key, or `local` on a server without one."""
        return "local" if self.api_key is None else hashlib.sha256(self.api_key.encode()).hexdigest()[:16]

    def op(self, model: type[pydantic.BaseModel], method: str) -> Callable[[Request], Awaitable[Response]]:
        """A handler for a JSON request of type `model`, answered by the service's `method`."""

        async def handler(request: Request) -> Response:
            parsed = model.model_validate(await _body(request))
            return JSONResponse(await asyncio.to_thread(getattr(self.service, method), parsed, self.owner(request)))

        return handler

    async def client_config(self, request: Request) -> Response:
        return JSONResponse({"parallel_fwdbwd_chunks": False})  # requests of one client then arrive in order

    async def dynamic_config(self, request: Request) -> Response:
        return JSONResponse({})

    async def create_session(self, request: Request) -> Response:
        body = await _body(request)
        parsed = types.CreateSessionRequest.model_validate(body)
        return JSONResponse(self.service.create_session(parsed, self.owner(request)))

    async def heartbeat(self, request: Request) -> Response:
        self.service.touch(_field(await _body(request), "session_id"), self.owner(request))
        return JSONResponse({"type": "session_heartbeat"})

    async def finish_session(self, request: Request) -> Response:
        self.service.finish_session(request.path_params["session"], self.owner(request))
        return Response(status_code=204)

    async def telemetry(self, request: Request) -> Response:
        return JSONResponse({"status": "accepted"})

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "service": "stub_tinker"})

    async def status(self, request: Request) -> Response:
        return JSONResponse(self.service.status())

    async def capabilities(self, request: Request) -> Response:
        return JSONResponse(self.service.capabilities())

    async def retrieve_future(self, request: Request) -> Response:
        """A long poll: 408 with `try_again` when the result takes longer; a failed operation is a 200 with `error`."""
        future = self.service.future(_field(await _body(request), "request_id"), self.owner(request))
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(future)), LONG_POLL_SECONDS) if not future.done() else None
        if not future.done():
            return JSONResponse({"type": "try_again", "queue_state": "active"}, 408)
        error = future.exception()
        if error is None:
            result: Result = future.result()
            return Response(result.body, media_type=result.media_type)
        users = isinstance(error, (BadRequest, StoreError, ValueError))
        if not users:
            log.error("a request failed", exc_info=error)
        return JSONResponse({"error": str(error) or type(error).__name__, "category": "user" if users else "server"})

    async def get_info(self, request: Request) -> Response:
        model_id = _field(await _body(request), "model_id")
        return JSONResponse(await asyncio.to_thread(self.service.get_info, model_id, self.owner(request)))

    async def forward_backward(self, request: Request) -> Response:
        body = await _read(request)
        if request.headers.get("content-encoding") == "zstd":
            import zstandard

            try:
                body = zstandard.ZstdDecompressor().decompress(body, max_output_size=MAX_BODY)
            except zstandard.ZstdError as error:
                raise BadRequest(f"the body is not zstd: {error}") from error
        return JSONResponse(await asyncio.to_thread(self.service.forward_backward, body, self.owner(request)))

    async def get_sampler(self, request: Request) -> Response:
        sampler_id = request.path_params["sampler"]
        sampler = self.service.sampler(sampler_id, self.owner(request))
        return JSONResponse({"sampler_id": sampler_id, "base_model": sampler.base, "model_path": sampler.model_path})

    async def list_runs(self, request: Request) -> Response:
        owner = self.owner(request)
        runs = [info["training_run_id"] for info in self.service.store.list_runs(owner)]
        page, cursor = _page(request, runs)
        return JSONResponse({"training_runs": [self.service.training_run(run, owner) for run in page], "cursor": cursor})

    async def get_run(self, request: Request) -> Response:
        return JSONResponse(self.service.training_run(request.path_params["run"], self.owner(request)))

    async def list_checkpoints(self, request: Request) -> Response:
        return JSONResponse({"checkpoints": self.service.store.list_checkpoints(self.owner(request), request.path_params["run"])})

    async def list_user_checkpoints(self, request: Request) -> Response:
        page, cursor = _page(request, self.service.store.list_checkpoints(self.owner(request)))
        return JSONResponse({"checkpoints": page, "cursor": cursor})

    async def delete_checkpoint(self, request: Request) -> Response:
        self.service.store.delete(_checkpoint_path(request), self.owner(request))
        return Response(status_code=204)

    async def set_ttl(self, request: Request) -> Response:
        ttl = (await _body(request)).get("ttl_seconds")
        if ttl is not None and (not isinstance(ttl, int) or ttl < 1):
            raise BadRequest(f"ttl_seconds must be a positive whole number or null, got {ttl!r}")
        self.service.store.set_ttl(_checkpoint_path(request), self.owner(request), ttl)
        return Response(status_code=204)

    async def external_weights_urls(self, request: Request) -> Response:
        url = f"{request.url.scheme}://{request.headers.get('host', request.url.netloc)}"
        return JSONResponse(self.service.external_weights_urls(_checkpoint_path(request), self.owner(request), url))

    async def weights_info(self, request: Request) -> Response:
        info = self.service.store.find(_field(await _body(request), "tinker_path"), self.owner(request))[2]
        keys = ("base_model", "lora_rank", "train_unembed", "train_mlp", "train_attn")
        return JSONResponse({"is_lora": True, **{key: info[key] for key in keys}})

    async def list_sessions(self, request: Request) -> Response:
        owner = self.owner(request)
        page, _ = _page(request, [key for key, session in self.service.sessions.items() if session.owner == owner])
        return JSONResponse({"sessions": page})

    async def get_session(self, request: Request) -> Response:
        session_id = request.path_params["session"]
        session = self.service.sessions.get(session_id)
        if session is None or session.owner != self.owner(request):
            raise BadRequest(f"there is no session {session_id!r}", 404)
        return JSONResponse({
            "training_run_ids": [key for key, client in self.service.clients.items() if client.session == session_id],
            "sampler_ids": [key for key, sampler in self.service.samplers.items() if sampler.session == session_id],
            "user_metadata": session.metadata, "display_name": session.display_name,
        })

    async def signed_file(self, request: Request) -> Response:
        values, query = request.path_params, request.query_params
        expires = query.get("expires", "")
        if not expires.isdigit():
            raise BadRequest("expires must be a time in seconds")
        path = f"tinker://{values['run']}/external_weights/{values['name']}"
        return FileResponse(self.service.store.signed_file(path, values["file"], int(expires), query.get("signature", "")))

    async def not_offered(self, request: Request) -> Response:
        return _error(f"the stub Tinker backend does not offer {request.method} {request.url.path}", 404)


def _error(message: str, status: int) -> Response:
    return JSONResponse({"detail": message}, status)


async def _read(request: Request) -> bytes:
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_BODY:
            raise BadRequest(f"the body is over {MAX_BODY >> 20} MiB: send smaller batches", 413)
        chunks.append(chunk)
    return b"".join(chunks)


async def _body(request: Request) -> dict:
    body = json.loads(await _read(request) or b"{}")
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object")
    return body


def _field(body: dict, name: str) -> str:
    if not isinstance(body.get(name), str):
        raise BadRequest(f"{name} must be a string")
    return body[name]


def _page(request: Request, rows: list) -> tuple[list, dict]:
    values = {}
    for name, default in (("offset", 0), ("limit", 100)):
        text = request.query_params.get(name, str(default))
        if not text.isdigit():
            raise BadRequest(f"{name} must be a whole number, got {text!r}")
        values[name] = min(int(text), 1 << 31)
    offset, limit = values["offset"], values["limit"]
    return rows[offset : offset + limit], {"offset": offset, "limit": limit, "total_count": len(rows)}


def _checkpoint_path(request: Request) -> str:
    values = request.path_params
    return f"tinker://{values['run']}/{values['kind']}/{values['name']}"
