"""When each request of a session was done, as a trace that https://ui.perfetto.dev shows.

The trace is Perfetto's protobuf format, of which these few fields are enough; their numbers are those of its
perfetto_trace.proto.
"""

import heapq
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

KEPT = 20_000  # latest requests of a key, about 4 MB
SLICE_BEGIN, SLICE_END = 1, 2
SAMPLING = "sampling"


@dataclass
class Noted:
    """One request. Times are in nanoseconds; 0 for what has not happened yet."""

    session: str
    track: str
    name: str
    asked: int = field(default_factory=time.monotonic_ns)
    begun: int = 0
    ended: int = 0

    def timed(self, work: Callable[[], Any]) -> Callable[[], Any]:
        """`work`, which notes when it begins."""

        def begin() -> Any:
            self.begun = time.monotonic_ns()
            return work()

        return begin

    def end(self, _: object = None) -> None:
        self.ended = time.monotonic_ns()


class Timeline:
    """The latest requests of each key, as long as the server runs."""

    def __init__(self) -> None:
        self._kept: defaultdict[str, deque[Noted]] = defaultdict(lambda: deque(maxlen=KEPT))
        self._lock = threading.Lock()

    def note(self, owner: str, session: str, track: str, name: str) -> Noted:
        """Note a request that was accepted now.

        Args:
            track: what does such requests one after the other: a training client's id; or `SAMPLING`.
        """
        noted = Noted(session, track, name)
        with self._lock:
            self._kept[owner].append(noted)
        return noted

    def has(self, owner: str, session: str) -> bool:
        """Whether a request of a session was done."""
        with self._lock:
            return any(noted.session == session and noted.ended for noted in self._kept[owner])

    def trace(self, owner: str, session: str) -> bytes:
        """The requests of a session that were done, as a trace; empty if there are none."""
        with self._lock:
            kept = [noted for noted in self._kept[owner] if noted.session == session and noted.ended]
        packets = []
        for uuid, (name, slices) in enumerate(sorted(_lanes(kept).items()), start=1):
            packets.append(_data(60, _number(1, uuid) + _data(2, name.encode())))
            for noted in slices:
                packets += _slice(uuid, noted)
        return b"".join(_data(1, packet) for packet in packets)


def _lanes(kept: list[Noted]) -> dict[str, list[Noted]]:
    """Requests by lane: those of a track that overlap in time are in different ones."""
    lanes: dict[str, list[Noted]] = {}
    busy: dict[str, list[tuple[float, str]]] = defaultdict(list)  # a track's lanes by when they are free
    for noted in sorted(kept, key=lambda noted: noted.begun or noted.asked):
        track = busy[noted.track]
        free = bool(track) and track[0][0] <= (noted.begun or noted.asked)
        lane = heapq.heappop(track)[1] if free else f"{noted.track} {len(track) + 1:03}"
        heapq.heappush(track, (noted.ended, lane))
        lanes.setdefault(lane, []).append(noted)
    return lanes


def _slice(track: int, noted: Noted) -> list[bytes]:
    """The packets of one request: its begin, with the milliseconds that it waited, and its end."""
    begun = noted.begun or noted.asked
    waited = _data(4, _data(10, b"waited_ms") + _number(3, (begun - noted.asked) // 1_000_000))
    begin = _number(9, SLICE_BEGIN) + _number(11, track) + _data(23, noted.name.encode()) + waited
    end = _number(9, SLICE_END) + _number(11, track)
    times = (begun, begin), (noted.ended, end)
    return [_number(8, at) + _number(10, 1) + _data(11, event) for at, event in times]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _number(field_number: int, value: int) -> bytes:
    return _varint(field_number << 3) + _varint(value)


def _data(field_number: int, value: bytes) -> bytes:
    return _varint(field_number << 3 | 2) + _varint(len(value)) + value
