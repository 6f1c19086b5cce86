"""The futures of accepted requests, kept until their clients have had time to ask."""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from helpers.stub_tinker.errors import BadRequest

JSON, PROTO = "application/json", "application/x-protobuf"
KEPT_RESULTS, KEPT_BYTES = 5000, 256 << 20


@dataclass
class Result:
    """What /retrieve_future answers."""

    body: bytes
    media_type: str = JSON


def json_result(value: dict) -> Result:
    return Result(json.dumps(value).encode())


def _size(future: Future) -> int:
    return 0 if future.exception() else len(future.result().body)


class Results:
    """Futures by request id. The oldest ended ones go when there are too many, or too many bytes of them."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[str, Future]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.RLock()  # requests are served by several threads

    def once(self, request_id: str, owner: str, begin: Callable[[], Future]) -> None:
        """Begin a request, unless it is a repeated one: its client then gets the first one's future."""
        with self._lock:
            if request_id not in self._kept:
                self._keep(request_id, owner, begin())

    def _keep(self, request_id: str, owner: str, future: Future) -> None:
        self._kept[request_id] = owner, future
        future.add_done_callback(lambda done: self._add_bytes(request_id, done))
        while self._kept and (len(self._kept) > KEPT_RESULTS or self._bytes > KEPT_BYTES):
            oldest = next(iter(self._kept.values()))[1]
            if not oldest.done():
                break
            self._kept.popitem(last=False)
            self._bytes -= _size(oldest)

    def _add_bytes(self, request_id: str, future: Future) -> None:
        with self._lock:
            if request_id in self._kept:  # its session may have ended
                self._bytes += _size(future)

    def find(self, request_id: str, owner: str) -> Future:
        """The future of a request.

        Raises:
            BadRequest: none of that id is known to this owner.
        """
        kept = self._kept.get(request_id)
        if kept is None or kept[0] != owner:
            raise BadRequest(f"no request {request_id!r} is known; the server may have restarted", 404)
        return kept[1]

    def forget(self, session_id: str) -> None:
        """Drop the results of a session that has ended."""
        with self._lock:
            for key in [key for key in self._kept if key.startswith(f"{session_id}:")]:
                _, future = self._kept.pop(key)
                if future.done():
                    self._bytes -= _size(future)

    def all(self) -> dict[str, Future]:
        """The kept futures by request id, oldest first."""
        return {key: future for key, (_, future) in list(self._kept.items())}
