"""How long the real work took, by kind: what a stage says beside its whole time.

    with worked("sampling"):
        ...
    work_done()     # {"sampling": 12.3}

Functions of the course that train, sample, merge or run vLLM count themselves, so notebooks need not. Every
second counts once: a block inside another one interrupts it, so training with evaluations in between is
training without their sampling. Time is wall-clock time of the process. If several threads work at once, a
second goes to the block that was opened last.
"""

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Iterator

_lock = threading.Lock()
_totals: dict[str, float] = defaultdict(float)
_open: list[
    list[str]
] = []  # a list of one for each open block, since two blocks of a kind must be told apart
_since = 0.0


def _charge() -> None:
    """Add the time since the last change to the kind that is at work."""
    global _since
    now = time.monotonic()
    if _open:
        _totals[_open[-1][0]] += now - _since
    _since = now


@contextlib.contextmanager
def worked(kind: str) -> Iterator[None]:
    """Count the time inside as `kind`: training, sampling, merging or vllm. Works as a decorator too."""
    block = [kind]
    with _lock:
        _charge()
        _open.append(block)
    try:
        yield
    finally:
        with _lock:
            _charge()
            del _open[next(place for place, other in enumerate(_open) if other is block)]


def work_done() -> dict[str, float]:
    """Seconds of each kind since this process began; blocks that are still open count up to now."""
    with _lock:
        _charge()
        return dict(_totals)
