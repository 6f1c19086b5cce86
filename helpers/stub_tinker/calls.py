"""One call of a client: what it brings, whose it is, and what all calls share."""

import asyncio
import re
import time
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from helpers.stub_tinker import bodies
from helpers.stub_tinker.access import Access
from helpers.stub_tinker.budgets import Hold
from helpers.stub_tinker.errors import BadRequest
from helpers.stub_tinker.service import Service

LARGE_BODY = 256 << 10  # parsed beside the event loop, one at a time
AS_JSON, AS_PROTO = 12, 3  # bytes that one of a body comes to take while it is read: `300,` is 36 in a list
BY_ITSELF = "the SDK, by itself"  # sends a request that no method stands for


@dataclass
class RefusedKeys:
    """Requests whose key was missing or wrong: how many, and when and from where the last one came."""

    count: int = 0
    at: float = 0.0
    host: str = ""

    def note(self, request: Request) -> None:
        self.count, self.at = self.count + 1, time.monotonic()
        self.host = request.client.host if request.client else ""


@dataclass
class Running:
    """A server while it runs.

    Attributes:
        proof: what it answers to the nonce of who looks for it.
        stopping: new work is refused, and what was accepted is finished.
        last_request: the event loop's time of the last call that was a use of the server.
        fetched: futures whose results their clients have had.
        reading: of a large body, one at a time: parsing holds Python's lock, which the engine needs.
    """

    service: Service
    access: Access
    proof: Callable[[str], str]
    stopping: bool = False
    last_request: float = 0.0
    started: float = field(default_factory=time.monotonic)
    refused_keys: RefusedKeys = field(default_factory=RefusedKeys)
    fetched: weakref.WeakSet[Future] = field(default_factory=weakref.WeakSet)
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)


class Call:
    """A request that was let in."""

    def __init__(self, running: Running, request: Request):
        self.running, self.request, self.service = running, request, running.service
        self.owner = running.access.owner(request)
        self._holds: list[Hold] = []

    def close(self) -> None:
        """Give back what reading the body took."""
        for hold in self._holds:
            hold.release()

    async def answer(self, work: Callable[..., dict], *arguments: Any) -> Response:
        """Answer with what `work(service, owner, *arguments)` returns, run beside the event loop."""
        return JSONResponse(await self.beside(work, self.service, self.owner, *arguments))

    async def beside(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """What `work` returns, run beside the event loop: it may wait for the disk or the engine."""
        return await asyncio.to_thread(work, *arguments)

    # The body

    async def raw(self, most: int, factor: int = 1) -> bytes:
        """The body, unpacked.

        Args:
            most: bytes that it may have.
            factor: bytes of memory that each will take.

        Raises:
            BadRequest: it is too large, or in an encoding that is not offered, or its key has too much of
                this under way.
        """
        headers = self.request.headers
        length, encoding = headers.get("content-length", ""), headers.get("content-encoding", "identity")
        if length.isascii() and length.isdigit() and (len(length) > 18 or int(length) > most):
            raise bodies.too_large(most)
        if encoding not in ("identity", "zstd"):
            raise BadRequest(f"content-encoding {encoding!r} is not offered: zstd is", 415)

        def admit(size: int) -> None:
            self._holds.append(self.service.budgets.hold(self.owner, reading=factor * size))

        body = bytearray()
        async for chunk in self.request.stream():
            admit(len(chunk))
            body += chunk
            if len(body) > most:
                raise bodies.too_large(most)
        if encoding == "identity":
            return bytes(body)
        return await self.read(len(body) << 10, bodies.unpacked, bytes(body), most, admit)

    async def read(self, size: int, work: Callable[..., Any], *arguments: Any) -> Any:
        """What `work` makes of a body of so many bytes; beside the event loop if that takes long."""
        if size <= LARGE_BODY:
            return work(*arguments)
        async with self.running.reading:
            return await asyncio.to_thread(work, *arguments)

    async def body(self) -> dict:
        """The body as a JSON object."""
        raw = await self.raw(bodies.MAX_JSON, AS_JSON)
        return await self.read(len(raw), bodies.json_object, raw)

    async def text(self, name: str) -> str:
        """A field of the body."""
        body = await self.body()
        if not isinstance(body.get(name), str):
            raise BadRequest(f"{name} must be a string")
        return body[name]

    async def parsed(self, model: type[bodies.Model], most: int = bodies.MAX_JSON) -> bodies.Model:
        """The body as a request of the SDK."""
        raw = await self.raw(most, AS_JSON)
        return await self.read(len(raw), bodies.validated, raw, model)

    # The address

    def part(self, name: str) -> str:
        """A parameter of the path."""
        return self.request.path_params[name]

    @property
    def checkpoint(self) -> str:
        """The tinker path of the checkpoint that the address names."""
        return f"tinker://{self.part('run')}/{self.part('kind')}/{self.part('name')}"

    @property
    def here(self) -> str:
        """The server's address, as the client calls it."""
        return f"{self.request.scope['scheme']}://{self.request.headers['host']}"

    def query(self, name: str, default: str = "") -> str:
        return self.request.query_params.get(name, default)

    def number(self, name: str, default: str = "") -> int:
        """A whole number of the query.

        Raises:
            BadRequest: it is none.
        """
        text = self.query(name, default)
        if not re.fullmatch("[0-9]{1,18}", text):
            raise BadRequest(f"{name} must be a whole number of at least 0, got {text[:30]!r}")
        return int(text)

    def page(self, rows: list) -> tuple[list, dict]:
        """The rows that `offset` and `limit` choose, and the cursor that says so."""
        offset, limit = self.number("offset", "0"), self.number("limit", "100")
        return rows[offset : offset + limit], {"offset": offset, "limit": limit, "total_count": len(rows)}

    @property
    def accessible(self) -> bool:
        """Whether published things of others are asked for too.

        Raises:
            BadRequest: `access_scope` is unknown.
        """
        scope = self.query("access_scope", "owned")
        if scope not in ("owned", "accessible"):
            raise BadRequest(f"access_scope must be owned or accessible, got {scope[:30]!r}")
        return scope == "accessible"


Handler = Callable[[Call], Awaitable[Response]]


@dataclass(frozen=True)
class Endpoint:
    """One row of the routes.

    Attributes:
        path: with parameters in braces.
        sdk: the method of the SDK that sends it, several with commas between, or `BY_ITSELF`.
        new_work: refused while the server stops.
    """

    method: str
    path: str
    sdk: str
    handler: Handler
    new_work: bool = False


def operation(
    model: type[bodies.Model],
    work: Callable[[Service, str, bodies.Model], dict],
    most: int = bodies.MAX_JSON,
) -> Handler:
    """A handler for a JSON request of type `model` and at most so many bytes, answered by `work`."""

    async def handler(call: Call) -> Response:
        return await call.answer(work, await call.parsed(model, most))

    return handler


def clean(message: str) -> str:
    """A message that can be sent: bounded, and valid text even where it quotes what is not."""
    message = message.encode("utf-8", "replace").decode()
    return message if len(message) <= 4000 else f"{message[:4000]}…"
