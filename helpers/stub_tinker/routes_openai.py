"""Routes of OpenAI's API, for any of its clients: at /v1, and where hosted Tinker has it.

A sample whose client goes away stops, streamed or not.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from helpers.stub_tinker.bodies import MAX_SAMPLE
from helpers.stub_tinker.calls import AS_JSON, Call, Endpoint, clean
from helpers.stub_tinker.errors import BadRequest
from helpers.stub_tinker.openai_answers import Answer
from helpers.stub_tinker.openai_requests import ChatRequest, CompletionRequest, OptionError, parsed
from helpers.stub_tinker.openai_work import Batch, NoModel, models
from helpers.stub_tinker.routes_work import failure

OPENAI = "clients of OpenAI's API"
PREFIXES = "/v1", "/oai/api/v1"  # the second is hosted Tinker's, behind its own address
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def speaks_openai(path: str) -> bool:
    """Whether who asks for this path expects errors in OpenAI's form."""
    return path.startswith(tuple(f"{prefix}/" for prefix in PREFIXES))


def openai_error(message: str, status: int, error: Exception | None = None) -> dict:
    """The body of a refusal, in OpenAI's form."""
    codes = {"model_not_found": isinstance(error, NoModel), "invalid_api_key": status == 401}
    kind = "server_error" if status >= 500 else TYPES.get(status, "invalid_request_error")
    return {
        "error": {
            "message": clean(message),
            "type": kind,
            "param": error.option if isinstance(error, OptionError) else None,
            "code": next((code for code, holds in codes.items() if holds), None),
        }
    }


async def _list_models(call: Call) -> Response:
    found = await call.beside(models, call.service, call.owner)
    return JSONResponse({"object": "list", "data": found})


async def _get_model(call: Call) -> Response:
    for model in await call.beside(models, call.service, call.owner):
        if model["id"] == call.part("model"):
            return JSONResponse(model)
    raise NoModel(f"there is no model {call.part('model')[:300]!r}", 404)


async def _chat(call: Call) -> Response:
    return await _answered(call, ChatRequest)


async def _completion(call: Call) -> Response:
    return await _answered(call, CompletionRequest)


async def _answered(call: Call, model: type[ChatRequest] | type[CompletionRequest]) -> Response:
    raw = await call.raw(MAX_SAMPLE, AS_JSON)
    request = await call.read(len(raw), parsed, raw, model)
    batch = await call.beside(Batch, call.service, call.owner, request)
    if request.stream:
        return EventStream(batch)
    answer = asyncio.create_task(_whole(batch))
    gone = asyncio.create_task(_disconnected(call))
    try:
        await asyncio.wait([answer, gone], return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return JSONResponse(answer.result())
    except ValueError as error:  # of the engine: cancelled, or its session ended
        raise BadRequest(str(error)) from error
    finally:
        gone.cancel()
        answer.cancel()
        _stop(batch)


async def _whole(batch: Batch) -> dict:
    async for _ in batch.changes():
        pass
    return await asyncio.to_thread(Answer(batch).whole)


async def _disconnected(call: Call) -> None:
    while (await call.request.receive())["type"] != "http.disconnect":
        pass


def _stop(batch: Batch) -> None:
    """Stop what still runs, without waiting for it: the task that asks may be a cancelled one."""
    asyncio.get_running_loop().run_in_executor(None, batch.cancel)


class EventStream(StreamingResponse):
    """An answer as server-sent events. Starlette cancels it when its client goes away."""

    def __init__(self, batch: Batch):
        super().__init__(
            _events(batch), media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
        )
        self._batch = batch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            _stop(self._batch)


async def _events(batch: Batch) -> AsyncIterator[str]:
    answer = Answer(batch)
    try:
        for part in answer.opening():
            yield _event(part)
        async for ended in batch.changes():
            started = time.monotonic()
            for part in await asyncio.to_thread(answer.parts, ended):
                yield _event(part)
            await asyncio.sleep(time.monotonic() - started)  # or very many samples keep Python busy
        for part in answer.closing():
            yield _event(part)
    except Exception as error:  # the status is sent: the stream itself says what went wrong
        found = failure(error)
        yield _event(openai_error(found["error"], 400 if found["category"] == "user" else 500, error))
    yield "data: [DONE]\n\n"


def _event(part: dict) -> str:
    return f"data: {json.dumps(part, ensure_ascii=False)}\n\n"


ENDPOINTS = [
    endpoint
    for prefix in PREFIXES
    for endpoint in (
        Endpoint("GET", f"{prefix}/models", OPENAI, _list_models),
        Endpoint("GET", prefix + "/models/{model:path}", OPENAI, _get_model),
        Endpoint("POST", f"{prefix}/chat/completions", OPENAI, _chat, new_work=True),
        Endpoint("POST", f"{prefix}/completions", OPENAI, _completion, new_work=True),
    )
]
