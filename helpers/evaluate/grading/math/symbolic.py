"""Equality of two mathematical expressions by math-verify, in a process of its own.

math-verify bounds its time with signals, which only work in a main thread and never interrupt one long
operation in C (`9**9**9` in sympy). So it runs in a child process that the kernel ends when a comparison
takes too long: the same in a notebook, a script or a thread. The child is started on the first use (2 s) and
then answers in about 10 ms.
"""

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from functools import lru_cache
from typing import Any

from helpers.errors import CourseError
from helpers.paths import ROOT

SECONDS = 3.0
MAX_LENGTH = 400
MAX_MEMORY = 4 << 30


class _Child:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> "subprocess.Popen[str]":
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "helpers.evaluate.grading.math.symbolic"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
            text=True,
            encoding="utf-8",
        )
        if _line(self.process) != "ready\n":
            self.stop()
            raise CourseError(
                "the process that compares mathematical expressions did not start",
                "check that `python -c 'import math_verify'` works in this environment",
            )
        return self.process

    def stop(self) -> None:
        if self.process is None:
            return
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                with contextlib.suppress(BrokenPipeError):  # what was not read yet
                    pipe.close()
        self.process = None

    def ask(self, gold: str, found: str) -> bool | None:
        with self.lock:
            process = self.process or self.start()
            try:
                print(json.dumps([gold, found]), file=process.stdin, flush=True)
                reply = _line(process)
            except BrokenPipeError:
                reply = ""
            if not reply:  # the child ran out of time or memory
                self.stop()
                return None
            return json.loads(reply)


def _line(process: "subprocess.Popen[str]") -> str:
    return process.stdout.readline() if process.stdout else ""


_child = _Child()
atexit.register(_child.stop)
# A forked process must not talk through its parent's pipes.
os.register_at_fork(after_in_child=lambda: _child.__init__())


@lru_cache(maxsize=8192)
def symbolic_equal(gold: str, found: str) -> bool | None:
    """Whether two LaTeX or plain expressions are equal; None if that could not be decided in time.

    Args:
        gold: the reference, without `$` around it.
        found: the answer to judge.

    Raises:
        CourseError: math-verify is not installed.
    """
    if not gold or not found or max(len(gold), len(found)) > MAX_LENGTH:
        return None
    return _child.ask(gold, found)


def _compare(gold: str, found: str) -> bool:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    targets = [LatexExtractionConfig(), ExprExtractionConfig()]
    # No time limits of its own: they work by signals, which this process has put to another use.
    limits: Any = {"parsing_timeout": None}
    left, right = (parse(f"${text}$", targets, **limits) for text in (gold, found))
    return bool(left and right) and bool(
        verify(left, right, timeout_seconds=None, allow_set_relation_comp=True)
    )


def _serve() -> None:
    """Answer requests line by line. The default action of SIGALRM ends the process, even inside C code."""
    import logging
    import resource
    import signal

    logging.disable(logging.CRITICAL)
    _compare("1", "1")
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a notebook is for the parent
    print("ready", flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            answer = _compare(*json.loads(line))
        except Exception:  # whatever sympy raises on odd text: these two can't be shown equal
            answer = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
