"""Connections, with the limits that uvicorn lacks: how many there are, and how long a client may take.

At the limit of open files, asyncio fills the log: thousands of lines a second about connections that it can't
accept. So there are always fewer connections than files. Beyond that, a new one takes the place of the one
that has gone without a request for longest.
"""

import asyncio
import resource
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from helpers.stub_tinker.gate import MAX_HEADERS

FILES = 8192
QUEUE = 2048  # connections that the system holds until they are accepted
IDLE_SECONDS = 75  # between two requests
HEADER_SECONDS = 20  # for all of the headers
BODY_SECONDS = 300  # for all of the body


def options() -> dict[str, Any]:
    """What `uvicorn.Config` is told. Raises the limit of open files of this process, if it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    Connection.most = files // 2
    return {
        "http": Connection,
        "backlog": files // 16,  # what asyncio accepts in one go, before it can close any
        "timeout_keep_alive": IDLE_SECONDS,
        "h11_max_incomplete_event_size": MAX_HEADERS,
        "log_level": "error",  # a warning for each request that is no HTTP would let anyone fill the disk
        "access_log": False,
    }


class Connection(H11Protocol):
    """uvicorn's connection by h11, which ends when its client takes too long."""

    most: ClassVar[int]  # at a time
    waiting: ClassVar[dict["Connection", None]] = {}  # for headers, or for the rest of them; oldest first

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.waiting[self] = None
        self._expected, self._timer = h11.IDLE, self.loop.call_later(HEADER_SECONDS, self._time_is_over)
        if len(self.connections) > self.most:
            longest = next(iter(self.waiting))
            del self.waiting[longest]
            longest.transport.abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self.waiting.pop(self, None)
        if self.conn.their_state is not self._expected:
            self._expected = self.conn.their_state
            self._set_timer()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE:
            self.waiting[self] = None

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.waiting.pop(self, None)
        self._timer.cancel()

    def _set_timer(self) -> None:
        """Give the client its time for the part of a request that it has begun."""
        self._timer.cancel()
        if self._expected in (h11.IDLE, h11.SEND_BODY):
            seconds = HEADER_SECONDS if self._expected is h11.IDLE else BODY_SECONDS
            self._timer = self.loop.call_later(seconds, self._time_is_over)

    def _time_is_over(self) -> None:
        if self.flow.read_paused:  # it is the server that hasn't taken in what is there
            self._set_timer()
        else:
            self.transport.abort()
