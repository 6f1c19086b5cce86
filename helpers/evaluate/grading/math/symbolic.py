"""Equality of two mathematical expressions by math-verify, in a process of its own.

math-verify bounds its time with signals, which only work in a main thread and never interrupt one long
operation in C (`9**9**9` in sympy). So it runs in a child process that the kernel ends when a comparison
takes too long: the same in a notebook, a script or a thread. The child is started on the first use (2 s) and
then answers in about 10 ms. It forks a worker, and another one when the kernel has ended that.
"""

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

from helpers.errors import CourseError
from helpers.paths import ROOT

SECONDS = 0.8  # of CPU time: a busy machine gives the same verdicts
MAX_LENGTH = 400
MAX_MEMORY = 150 << 20  # on top of the libraries


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
            if not reply:  # the child itself is gone
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
    left, right = (
        [_with_fractions(part) for part in parse(f"${text}$", targets, **limits)] for text in (gold, found)
    )
    if not left or not right:
        return False
    # By math-verify's own 15 digits and 6 places, all numbers below 1e-15 are equal, and 1e-7 is 0.000000.
    places = max(_places(left[0]), _places(right[0]))
    return bool(
        verify(
            left,
            right,
            float_rounding=places,
            numeric_precision=400,
            timeout_seconds=None,
            allow_set_relation_comp=True,
        )
    )


def _with_fractions(part: Any) -> Any:
    """An expression or equation with its decimals as fractions: `0.1 e` is exactly `e/10`."""
    from sympy import Expr, Float, Rational, UnevaluatedExpr
    from sympy.core.relational import Relational

    if not isinstance(part, (Expr, Relational)) or part.is_Atom or part.has(UnevaluatedExpr):
        return part
    return part.xreplace({number: Rational(str(number)) for number in part.atoms(Float)})


def _places(part: Any) -> int:
    """The places to which a decimal is compared with what it is rounded from: 6, three of them not 0."""
    from sympy import Float

    if not isinstance(part, Float):
        return 6
    return max(6, 2 - Decimal(str(part)).adjusted()) if part else 400


def _serve() -> None:
    """Load the libraries once, and keep one worker at work."""
    import logging
    import signal

    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a notebook is for the parent
    _compare("x(x+1)", "x^2+x")  # each worker starts with what this has loaded
    print("ready", flush=True)
    while True:
        worker = os.fork()
        if worker == 0:
            _work()
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) != -signal.SIGPROF:
            return
        print("null", flush=True)


def _work() -> None:
    """Answer requests line by line. The default action of SIGPROF ends the process, even inside C code."""
    import resource
    import signal

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit, hard = pages * resource.getpagesize() + MAX_MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            answer = _compare(*json.loads(line))
        except MemoryError:
            answer = None
        except Exception:  # whatever sympy raises on odd text: these two can't be shown equal
            answer = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
