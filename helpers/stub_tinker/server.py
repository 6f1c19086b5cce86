"""The HTTP server: the routes of routes_work.py, routes_rest.py and routes_openai.py, behind one guard."""

import asyncio
import logging

import pydantic
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from helpers.stub_tinker import routes_openai, routes_rest, routes_work, support
from helpers.stub_tinker.access import STATUS_PATH
from helpers.stub_tinker.calls import BY_ITSELF, Call, Endpoint, Running, clean
from helpers.stub_tinker.errors import RequestError
from helpers.stub_tinker.gate import Gate
from helpers.stub_tinker.routes_openai import openai_error, speaks_openai

log = logging.getLogger("stub_tinker")

METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]
UNUSED_PATHS = ("/api/v1/healthz", STATUS_PATH)  # a look at the server is no use of it
RETRY_SECONDS = 1  # until a client whose budget is full should ask again
LIMITS = 403, 413, 429  # the status of what is over a limit
ASKED_AGAIN = 408, 409, 429  # the status of answers after which the SDK asks again by itself
REFUSAL_SECONDS = 0.25  # it takes, or who repeats it at once keeps Python busy, which computing needs too
ENDPOINTS = [*routes_work.ENDPOINTS, *routes_rest.ENDPOINTS, *routes_openai.ENDPOINTS]
STOPPING = (
    "the server is stopping: it takes no new requests. "
    "What it accepted is finished, and saved checkpoints are kept"
)


def application(running: Running, gate: Gate) -> Starlette:
    """The server as an ASGI application."""
    routes = [guarded(running, gate, endpoint) for endpoint in ENDPOINTS]

    async def not_offered(call: Call) -> Response:
        return _not_offered(call, routes)

    rest = guarded(running, gate, Endpoint("*", "/{rest:path}", BY_ITSELF, not_offered))
    return Starlette(routes=[*routes, rest], exception_handlers={HTTPException: _http_error})


def guarded(running: Running, gate: Gate, endpoint: Endpoint) -> Route:
    """A route that checks a request's origin and its key, and turns every expected fault into a 4xx with a
    message.
    """

    async def handle(request: Request) -> Response:
        if objection := gate.objection(request):
            return refusal(request, *objection)
        at = request.scope["path"]
        if not running.access.allows(request):
            if at != STATUS_PATH:
                running.refused_keys.note(request)
            ask = {"WWW-Authenticate": 'Basic realm="stub Tinker backend"'} if at == STATUS_PATH else None
            return refusal(request, "the API key is missing or wrong", 401, ask)
        if at not in UNUSED_PATHS:
            running.last_request = asyncio.get_running_loop().time()
        if endpoint.new_work and running.stopping:
            return refusal(request, STOPPING, 403)
        return await _answered(endpoint, Call(running, request))

    methods = METHODS if endpoint.method == "*" else [endpoint.method]
    return Route(endpoint.path, handle, methods=methods)


def refusal(
    request: Request,
    message: str,
    status: int,
    headers: dict[str, str] | None = None,
    error: Exception | None = None,
) -> Response:
    """What a request that can't be met is answered, in the form that its client reads."""
    if speaks_openai(request.scope["path"]):
        return JSONResponse(openai_error(message, status, error), status, headers)
    return JSONResponse({"detail": clean(message)}, status, headers)


async def _answered(endpoint: Endpoint, call: Call) -> Response:
    request = call.request

    def refuse(
        message: str, status: int, headers: dict[str, str] | None = None, error: Exception | None = None
    ) -> Response:
        if endpoint.new_work:
            what, again = request.scope["path"].rpartition("/")[2], status in ASKED_AGAIN or status >= 500
            call.service.learners.of(call.owner).failed(what, message, not again)
        return refusal(request, message, status, headers, error)

    try:
        return await endpoint.handler(call)
    except RequestError as error:
        headers = {"Retry-After": str(RETRY_SECONDS)} if error.status == 429 else None
        if error.status in LIMITS:
            call.close()
            await asyncio.sleep(REFUSAL_SECONDS)
        return refuse(str(error), error.status, headers, error)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        return refuse(f"{'.'.join(map(str, first['loc'])) or 'the body'}: {first['msg']}", 422)
    except RecursionError:
        return refuse("the body is nested too deeply", 400)
    except ClientDisconnect:
        return refusal(request, "the client went away", 400)
    except Exception as error:
        log.exception("%s %s failed", endpoint.method, endpoint.path)
        return refuse(f"the server failed on this request: {type(error).__name__}", 500)
    finally:
        call.close()


def _not_offered(call: Call, routes: list[Route]) -> Response:
    """What a request that no route takes is told: the right method, or why the SDK's call is not offered."""
    path, method = call.request.scope["path"], call.request.method
    taken = {m for route in routes if route.path_regex.match(path) for m in route.methods or ()} - {"HEAD"}
    if others := sorted(taken):
        allowed = {"Allow": ", ".join(others)}
        return refusal(call.request, f"{path} takes {' or '.join(others)}, not {method}", 405, allowed)
    sdk_method = call.request.headers.get("x-sdk-method", "")
    if why := support.reason(sdk_method):
        return refusal(call.request, f"the stub Tinker backend does not offer {sdk_method}: {why}", 404)
    return refusal(call.request, f"the stub Tinker backend does not offer {method} {path}", 404)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refusal(request, str(error.detail), error.status_code, dict(error.headers or {}))
