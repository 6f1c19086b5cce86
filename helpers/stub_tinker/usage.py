"""How much each session has had: requests, tokens trained and sampled, and the rates of the last minute."""

import threading
import time
from collections import deque
from dataclasses import dataclass, field

MINUTE = 60


@dataclass
class Usage:
    """What a session has had, and when in the last minute. The engine adds while requests ask."""

    tokens_trained: int = 0
    tokens_sampled: int = 0
    requests: int = 0
    _recent: deque[tuple[float, int, int]] = field(default_factory=deque)  # (time, trained, sampled)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, requests: int = 0, trained: int = 0, sampled: int = 0) -> None:
        with self._lock:
            self.requests += requests
            self.tokens_trained += trained
            self.tokens_sampled += sampled
            if trained or sampled:
                self._recent.append((time.monotonic(), trained, sampled))
            self._forget()

    def _forget(self) -> None:
        while self._recent and self._recent[0][0] < time.monotonic() - MINUTE:
            self._recent.popleft()

    def rates(self) -> tuple[float, float]:
        """Tokens trained and sampled a second over the last minute."""
        with self._lock:
            self._forget()
            trained = sum(trained for _, trained, _ in self._recent)
            sampled = sum(sampled for *_, sampled in self._recent)
            return trained / MINUTE, sampled / MINUTE


class Ledger:
    """The usage of each session that lives, and of all together since the start."""

    def __init__(self) -> None:
        self.total = Usage()
        self._sessions: dict[str, Usage] = {}

    def open(self, session: str) -> None:
        self._sessions[session] = Usage()

    def close(self, session: str) -> None:
        self._sessions.pop(session, None)

    def of(self, session: str) -> Usage:
        """A session's usage; an empty one if it has ended meanwhile."""
        return self._sessions.get(session) or Usage()

    def count(self, session: str, requests: int = 0, trained: int = 0, sampled: int = 0) -> None:
        for usage in (self.total, self.of(session)):
            usage.add(requests, trained, sampled)
