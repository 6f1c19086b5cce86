"""Why a stage or a lesson failed: written into the run's manifest as the error's own fields, never parsed
from text.

`course run` turns this on in a kernel before a notebook's first cell, and `open_stage` for every reader.
`course run` and sweeps record what a notebook could not, such as a kernel that died, and show what is
recorded.
"""

from pathlib import Path
from typing import Any

from helpers.errors import CourseError
from helpers.runs.manifest import Failure, LessonEntry, now
from helpers.runs.run import Run
from helpers.runs.stages import STAGES


def record_failure(run: Run, name: str, error: BaseException) -> None:
    """Write why a stage or a lesson failed into the manifest: `what` and `fix` of an error of ours, the first
    line of any other.
    """
    if isinstance(error, CourseError):
        what, fix = error.what, error.fix
    else:
        what, fix = f"{type(error).__name__}: {str(error).strip() or 'no message'}".splitlines()[0], ""
    write_failure(run, Failure(stage=name, kind=type(error).__name__, what=what, fix=fix, time=now()))


def write_failure(run: Run, failure: Failure) -> None:
    name = failure.stage
    with run.edit() as manifest:
        if name in STAGES:
            manifest.failure = failure
        else:
            entry = manifest.lessons.get(name) or LessonEntry(status="started", started=now(), settings={})
            manifest.lessons[name] = entry.model_copy(update={"failure": failure})


def report_failures(folder: str | Path, name: str) -> None:
    """In a notebook, write any error of a later cell into the manifest of the run in `folder`, and then show
    it as usual.
    """
    import sys

    if "IPython" not in sys.modules:
        return
    from IPython.core.getipython import get_ipython

    if shell := get_ipython():

        def handle(shell: Any, kind: Any, error: Any, traceback: Any, tb_offset: int | None = None) -> None:
            record_failure(Run(Path(folder)), name, error)
            shell.showtraceback((kind, error, traceback), tb_offset=tb_offset)

        shell.set_custom_exc((Exception,), handle)
