"""The committed notebooks by nbval, in a process beside the tests, since they take as long as the others."""

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

LONG = "09_break_it"  # about 12 minutes; `make soak` runs it
ROAD = ["00_start_here", *(kind.notebook for kind in STAGES.values())]
STANDING_ON_IT = [*(lesson for lesson in LESSONS[2] if lesson != LONG), "solutions"]
NOTEBOOK_TESTS = "test_notebooks.py"
SECONDS = 2400


class Nbval:
    """nbval over the notebooks, one after the other, from the start of this context on.

    Args:
        env: its environment, with the folder for runs.
        cores: that it, and all that it starts, may use. Once its result is asked for, it may use all.
    """

    def __init__(self, env: dict[str, str], cores: list[int]):
        self.runs, self._env = Path(env["COURSE_RUNS_DIR"]), env
        self._all, self._cores = sorted(os.sched_getaffinity(0)), cores

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env"]
        command += ["--nbval-cell-timeout=1800", "--nbval-sanitize-with=tests/nbval_sanitize.cfg", "-q"]
        command += ["-p", "no:cacheprovider"]
        command += [f"notebooks/{name}.ipynb" for name in (*ROAD, *STANDING_ON_IT)]
        self._output = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=self._env,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        psutil.Process(self._process.pid).cpu_affinity(self._cores)
        return self

    def result(self) -> tuple[int, str]:
        """Status and output, once it has ended. Kernels that it starts from now on get all cores."""
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(self._process.pid).cpu_affinity(self._all)
        status = self._process.wait(timeout=SECONDS)
        self._output.seek(0)
        return status, self._output.read()

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGINT)  # it ends its kernels
            self._process.wait(timeout=60)
        self._output.close()
