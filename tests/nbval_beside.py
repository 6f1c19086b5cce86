"""The committed notebooks by nbval, in processes beside the tests, since they take as long as the others."""

import os
import queue
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

import psutil

from helpers.paths import ROOT
from helpers.runs.stages import LESSONS, STAGES

LONG = "09_break_it"  # up to 8 minutes; `make soak` runs it
ROAD = ["00_start_here", *(kind.notebook for kind in STAGES.values())]
# They stand on the run of the road, and don't need each other.
AFTER = ["07_tokens_and_templates", "08_lora_by_hand", "solutions"]
assert {LONG, *AFTER} == {*LESSONS[2], "solutions"}
NOTEBOOK_TESTS = "test_notebooks.py"
SECONDS = 2400


class Nbval:
    """nbval over the road from the start of this context on, and then over each notebook that stands on it.

    Args:
        env: its environment, with the folder for runs.
        cores: that it, and all that it starts, may use. Once its result is asked for, so are the others.
    """

    def __init__(self, env: dict[str, str], cores: list[int]):
        self.runs, self._env = Path(env["COURSE_RUNS_DIR"]), env
        self._others = sorted(os.sched_getaffinity(0) - set(cores))
        self._free: queue.SimpleQueue[list[int]] = queue.SimpleQueue()  # cores for one more process
        self._free.put(cores)
        self._running: set[subprocess.Popen] = set()
        self._closed = False

    def __enter__(self) -> Self:
        self._threads = ThreadPoolExecutor(1 + len(AFTER))
        road = self._threads.submit(self._run, ROAD)
        after = [self._threads.submit(self._run_after, road, [name]) for name in AFTER]
        self._results = [road, *after]
        return self

    def _run_after(self, road: Future[tuple[int, str]], notebooks: list[str]) -> tuple[int, str]:
        status, _ = road.result()
        return self._run(notebooks) if status == 0 else (0, "")

    def _run(self, notebooks: list[str]) -> tuple[int, str]:
        """nbval's status and what it printed, on the next free cores."""
        command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env"]
        command += ["--nbval-cell-timeout=1800", "--nbval-sanitize-with=tests/nbval_sanitize.cfg", "-q"]
        command += ["-p", "no:cacheprovider", *(f"notebooks/{name}.ipynb" for name in notebooks)]
        cores = self._free.get()
        if self._closed:
            return 1, "not run"
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self._env,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._running.add(process)
            psutil.Process(process.pid).cpu_affinity(cores)
            status = process.wait(timeout=SECONDS)
            self._free.put(cores)
            output.seek(0)
            return status, output.read()

    def result(self) -> tuple[int, str]:
        """The first status that isn't 0, and what all of them printed, once they have ended."""
        if self._others:
            self._free.put(self._others)
        results = [each.result() for each in self._results]
        return next((status for status, _ in results if status), 0), "".join(text for _, text in results)

    def __exit__(self, *_: object) -> None:
        self._closed = True
        for process in self._running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)  # it ends its kernels
                process.wait(timeout=60)
        for _ in AFTER:
            self._free.put([])  # whoever waits for cores sees that it is closed
        self._threads.shutdown()
