"""How much one key may hold, and all keys together: a request for more is refused before any of it is made.

The memory that clients may use is one number. The rows below that count bytes in memory are shares of it,
except those of requests being read. (How many learners a machine carries: `course/capacity.py`.)
"""

import threading
import weakref
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from helpers.memory import machine_memory
from helpers.stub_tinker.errors import BadRequest

GIB = 1 << 30
SERVER_BYTES = 3 * GIB  # for a small base model and one piece of work at a time
WORK_BYTES = 4096  # of a request that waits, beside what it brings
KEPT_RESULTS = 5000  # of a key


@dataclass(frozen=True)
class Limit:
    """One row of the table.

    Attributes:
        what: is counted, as in "this key has 5 live sessions".
        fix: what to do when it is full.
        passes: it gets free by itself, so that the SDK tries again by itself (429).
    """

    per_key: int
    in_all: int
    what: str
    fix: str
    passes: bool = False

    def check(self, mine: int, everyones: int, more: int = 1) -> None:
        """Whether a key that holds `mine`, of what all hold together, may have `more`.

        Raises:
            BadRequest: 413 if that can never be, 429 if it can be soon, 403 if something else must end first.
        """
        if more > self.per_key:
            raise BadRequest(
                f"this needs {more:,} {self.what}, and one key can have {self.per_key:,}. {self.fix}", 413
            )
        status = 429 if self.passes else 403
        if mine + more > self.per_key:
            raise BadRequest(
                f"this key has {mine:,} {self.what} and asks for {more:,} more: "
                f"one key can have {self.per_key:,}. {self.fix}",
                status,
            )
        if everyones + more > self.in_all:
            raise BadRequest(
                f"all keys together have {everyones:,} {self.what}, and this needs {more:,} more: "
                f"the server's limit is {self.in_all:,}. Try again when others have finished, "
                "or ask who runs the server",
                429,
            )


def table(memory: int, disk: int) -> dict[str, Limit]:
    """All limits, for so many bytes of memory and of disk that clients may use together."""
    wait = "Wait for results before you ask for more, or send less at once"
    smaller = "Send smaller batches"
    close = "Close a ServiceClient that you no longer use"
    delete = "Delete checkpoints, or give them a ttl_seconds"
    return {
        "sessions": Limit(1024, 1 << 14, "live sessions", close),
        "clients": Limit(256, 4096, "training clients", close),
        "samplers": Limit(8192, 1 << 16, "samplers", close),
        "memory": Limit(
            memory // 4,
            memory * 3 // 4,
            "bytes of weights in memory",
            f"Use a lower rank. {close}, or end it",
        ),
        "positions": Limit(1 << 24, 1 << 27, "tokens to train or sample", wait, True),
        "waiting": Limit(1024, 1 << 14, "requests of training clients that wait", wait, True),
        "queued": Limit(memory // 16, memory // 8, "bytes of work that waits", wait, True),
        "reading": Limit(256 << 20, 768 << 20, "bytes of requests being read", smaller, True),
        "results": Limit(memory // 16, memory // 8, "bytes of results", wait, True),
        "disk": Limit(disk // 2, disk, "bytes of checkpoints and samplers on disk", delete),
    }


def default_memory() -> int:
    """Bytes that clients may use if nobody says otherwise: all but what the server needs itself."""
    total, _ = machine_memory()
    return max(total - SERVER_BYTES, GIB)


class Hold:
    """A part of some budgets, given back once: at the end of its context, or by what it was handed on to."""

    def __init__(self, budgets: "Budgets", owner: str, amounts: dict[str, int]):
        self._budgets, self._owner, self._amounts = budgets, owner, amounts
        self._handed_on = self._kept = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._handed_on:
            self.release()

    def until(self, future: Future) -> None:
        """Give it back when `future` is done, unless it is handed on to what that made."""
        self._handed_on = True
        future.add_done_callback(lambda _: None if self._kept else self.release())

    def while_alive(self, thing: object) -> None:
        """Give it back when `thing` is not in memory any more."""
        self._handed_on = self._kept = True
        weakref.finalize(thing, self.release).atexit = False

    def release(self) -> None:
        amounts, self._amounts = self._amounts, {}
        self._budgets.give(self._owner, amounts)


class Budgets:
    """What each key holds, except sessions, samplers, results and disk: those are counted where they are."""

    def __init__(self, memory: int, disk: int):
        self.limits = table(memory, disk)
        self._held: dict[str, Counter[str]] = {name: Counter() for name in self.limits}
        self._lock = threading.RLock()  # a finalizer may run within a call, on the same thread

    def check(self, owner: str, **amounts: int) -> None:
        """Whether there is room for all of these now.

        Raises:
            BadRequest: one is over its limit.
        """
        with self._lock:
            for name, amount in amounts.items():
                held = self._held[name]
                self.limits[name].check(held[owner], held.total(), amount)

    def hold(self, owner: str, **amounts: int) -> Hold:
        """Take all of these, or nothing.

        Raises:
            BadRequest: one is over its limit.
        """
        with self._lock:
            self.check(owner, **amounts)
            for name, amount in amounts.items():
                self._held[name][owner] += amount
        return Hold(self, owner, amounts)

    def give(self, owner: str, amounts: dict[str, int]) -> None:
        with self._lock:
            for name, amount in amounts.items():
                self._held[name][owner] -= amount
                if not self._held[name][owner]:
                    del self._held[name][owner]


class DiskUse:
    """What each key has on disk, counted at first need, and again before a refusal if something was removed.

    Args:
        limit: of it; none if None.

    Attributes:
        counts: each says a part of it, in bytes by owner.
    """

    def __init__(self, limit: Limit | None = None):
        self._limit = limit
        self.counts: list[Callable[[], Counter[str]]] = []
        self._used: Counter[str] | None = None
        self._removed = False
        self._lock = threading.Lock()

    def _count(self) -> Counter[str]:
        self._removed = False
        return sum((count() for count in self.counts), Counter())

    def take(self, owner: str, size: int) -> None:
        """Note that a key writes so many bytes.

        Raises:
            BadRequest: that would be too many.
        """
        if self._limit is None:
            return
        with self._lock:
            if self._used is None:
                self._used = self._count()
            try:
                self._limit.check(self._used[owner], self._used.total(), size)
            except BadRequest:
                if not self._removed:
                    raise
                self._used = self._count()
                self._limit.check(self._used[owner], self._used.total(), size)
            self._used[owner] += size

    def removed(self) -> None:
        """Something is gone: count anew before the next refusal."""
        self._removed = True
