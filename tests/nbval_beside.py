"""The committed notebooks by nbval, in processes beside the tests, since they take as long as the others."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Self

import psutil

from helpers.paths import ROOT
from helpers.runs.stages import LESSONS, STAGES

LONG = "09_break_it"  # up to 8 minutes; `make soak` runs it
ROAD = ["00_start_here", *(kind.notebook for kind in STAGES.values())]
# They stand on the run of the road, and don't need each other.
AFTER = [["07_tokens_and_templates"], ["08_lora_by_hand", "solutions"]]
assert {LONG, *AFTER[0], *AFTER[1]} == {*LESSONS[2], "solutions"}
NOTEBOOK_TESTS = "test_notebooks.py"
SECONDS = 2400


class Nbval:
    """nbval over the road from the start of this context on, and then over the notebooks that stand on it.

    Args:
        env: its environment, with the folder for runs.
        cores: that the road, and all that it starts, may use. All are free afterwards.
    """

    def __init__(self, env: dict[str, str], cores: list[int]):
        self.runs, self._env = Path(env["COURSE_RUNS_DIR"]), env
        self._all, self._cores = sorted(os.sched_getaffinity(0)), cores

    def __enter__(self) -> Self:
        self._files, self._started = contextlib.ExitStack(), []
        self._start(ROAD, self._cores)
        return self

    def _start(self, notebooks: list[str], cores: list[int]) -> None:
        command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env"]
        command += ["--nbval-cell-timeout=1800", "--nbval-sanitize-with=tests/nbval_sanitize.cfg", "-q"]
        command += ["-p", "no:cacheprovider", *(f"notebooks/{name}.ipynb" for name in notebooks)]
        output = self._files.enter_context(tempfile.TemporaryFile("w+"))  # noqa: SIM115 (ExitStack)
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=self._env,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        psutil.Process(process.pid).cpu_affinity(cores)
        self._started.append((process, output))

    def result(self) -> tuple[int, str]:
        """The first status that isn't 0, and what all of them printed, once they have ended."""
        road, _ = self._started[0]
        if road.wait(timeout=SECONDS) == 0:
            half = len(self._all) // 2
            for notebooks, cores in zip(AFTER, (self._all[:half], self._all[half:]), strict=True):
                self._start(notebooks, cores or self._all)
        statuses = [process.wait(timeout=SECONDS) for process, _ in self._started]
        for _, output in self._started:
            output.seek(0)
        return next(filter(None, statuses), 0), "".join(output.read() for _, output in self._started)

    def __exit__(self, *_: object) -> None:
        for process, _ in self._started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)  # it ends its kernels
                process.wait(timeout=60)
        self._files.close()
