"""Ctrl-C, and requests to end."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any


def heed_ctrl_c() -> None:
    """Let Ctrl-C interrupt this process, for itself and for those that it starts.

    A shell script starts `command &` with the signal ignored, and so do `nohup make test &` and CI runners.
    Every process that is started from there inherits that.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def ended_like_ctrl_c() -> Iterator[None]:
    """A request to end (`kill`, a time limit, a closed terminal) interrupts, so that nothing goes on by
    itself.
    """

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
