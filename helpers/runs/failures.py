"""Why a run failed: written into its manifest (`manifest.failure`) as the error's own fields, never parsed
from text.

`open_stage` turns this on for a notebook's cells; `course run` and sweeps record what a notebook could not,
such as a kernel that died, and show what is recorded.
"""

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
    failure = Failure(stage=name, kind=type(error).__name__, what=what, fix=fix, time=now())
    with run.edit() as manifest:
        if name in STAGES:
            manifest.failure = failure
        else:
            entry = manifest.lessons.get(name) or LessonEntry(status="started", started=now(), settings={})
            manifest.lessons[name] = entry.model_copy(update={"failure": failure})


def report_failures(run: Run, name: str) -> None:
    """In a notebook, write any error of a later cell into the run's manifest, and then show it as usual."""
    import sys

    if "IPython" not in sys.modules:
        return
    from IPython.core.getipython import get_ipython

    if shell := get_ipython():

        def handle(shell: Any, kind: Any, error: Any, traceback: Any, tb_offset: int | None = None) -> None:
            record_failure(run, name, error)
            shell.showtraceback((kind, error, traceback), tb_offset=tb_offset)

        shell.set_custom_exc((Exception,), handle)
