"""The futures of accepted requests, kept until their clients have had time to ask."""

import json
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from helpers.stub_tinker.budgets import KEPT_RESULTS, Limit
from helpers.stub_tinker.errors import BadRequest

GONE = "its result is kept no more. Ask for results as they come"
JSON, PROTO = "application/json", "application/x-protobuf"


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
    """Futures by request id, for each owner the newest.

    Of an owner with too many, or too many bytes of them, the oldest ended ones go; of all together, those of
    the owner with most. A request id ends in `:` and a number, and those that begin alike are of one client,
    which counts up: what it asks anew at or below the last number that went was done before.
    """

    def __init__(self, limit: Limit) -> None:
        self._limit = limit
        self._kept: dict[str, OrderedDict[str, Future]] = {}  # by owner
        self._sizes: dict[str, int] = {}  # of ended ones, by request id
        self._bytes: Counter[str] = Counter()  # by owner
        self._gone: dict[str, int] = {}  # by client
        self._lock = threading.RLock()  # requests are served by several threads

    def once(self, request_id: str, owner: str, begin: Callable[[], Future]) -> None:
        """Begin a request, unless it is a repeated one: its client then gets the first one's future.

        Raises:
            BadRequest: it is an earlier one, or one whose result is kept no more.
        """
        with self._lock:
            kept = self._kept.setdefault(owner, OrderedDict())
            if request_id not in kept:
                if self._is_gone(request_id):
                    raise BadRequest(
                        f"request {request_id!r} was done before: {GONE}. It is not done again", 410
                    )
                kept[request_id] = future = begin()
                future.add_done_callback(lambda done: self._add_bytes(request_id, owner, done))
                self._tidy(owner)

    def _is_gone(self, request_id: str) -> bool:
        client, number = _parts(request_id)
        return number <= self._gone.get(client, -1)

    def _add_bytes(self, request_id: str, owner: str, future: Future) -> None:
        with self._lock:
            if request_id in self._kept.get(owner, ()):  # its session may have ended
                self._sizes[request_id] = _size(future)
                self._bytes[owner] += self._sizes[request_id]
            self._tidy(owner)

    def _tidy(self, owner: str) -> None:
        while len(self._kept.get(owner, ())) > KEPT_RESULTS or self._bytes[owner] > self._limit.per_key:
            if not self._drop_oldest(owner):
                break
        while self._bytes.total() > self._limit.in_all:
            if not self._drop_oldest(self._bytes.most_common(1)[0][0]):
                break

    def _drop_oldest(self, owner: str) -> bool:
        """Drop the oldest result of an owner; False if there is none yet."""
        request_id = next((key for key in self._kept[owner] if key in self._sizes), None)
        if request_id is None:
            return False
        client, number = _parts(request_id)
        self._gone[client] = max(self._gone.get(client, -1), number)
        self._remove(owner, request_id)
        return True

    def _remove(self, owner: str, request_id: str) -> None:
        del self._kept[owner][request_id]
        self._bytes[owner] -= self._sizes.pop(request_id, 0)

    def find(self, request_id: str, owner: str) -> Future:
        """The future of a request.

        Raises:
            BadRequest: none of that id is known to this owner.
        """
        future = self._kept.get(owner, {}).get(request_id)
        if future is None:
            why = GONE if self._is_gone(request_id) else "the server may have restarted"
            raise BadRequest(f"no request {request_id!r} is known: {why}", 404)
        return future

    def forget(self, session_id: str, owner: str) -> None:
        """Drop the results of a session that has ended."""
        with self._lock:
            for request_id in [key for key in self._kept.get(owner, ()) if key.startswith(f"{session_id}:")]:
                self._remove(owner, request_id)
            for client in [key for key in self._gone if key.startswith(f"{session_id}:")]:
                del self._gone[client]
            if not self._kept.get(owner):
                self._kept.pop(owner, None)
                self._bytes.pop(owner, None)

    def all(self) -> dict[str, Future]:
        """The kept futures by request id, of each owner the oldest first."""
        with self._lock:
            return {key: future for kept in self._kept.values() for key, future in kept.items()}


def _parts(request_id: str) -> tuple[str, int]:
    """The client of a request, and its number; the making of a client comes before its first."""
    client, _, number = request_id.rpartition(":")
    return client, int(number) if number.lstrip("-").isdecimal() else 0
