"""Executing a notebook through papermill: a line of progress, and what to say when it fails."""

import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.errors import RunError
from helpers.paths import NOTEBOOKS
from helpers.runs.failures import record_failure, write_failure
from helpers.runs.manifest import Failure, now
from helpers.runs.run import WRITABLE, Run
from helpers.runs.stages import STAGES
from helpers.text import clock, printable, without_colours
from helpers.train.keys import TRIED

INTERRUPTED = 130
TRACEBACK_LINES = 12


def run_notebook(
    run: Run, stage: str, settings: dict[str, Any], label: str, notebooks: Path = NOTEBOOKS
) -> int:
    """Execute a stage's notebook into `notebooks/` of the run folder, and print how it ended.

    Args:
        settings: what the notebook is told, by name.
        label: stands before the notebook's name, such as `[1/6]`.
        notebooks: the folder with the notebooks.

    Returns:
        0, 1 after printing what went wrong, or 130 if it was interrupted. If it failed, the run's manifest
        says why.

    Raises:
        RunError: the run folder can't be written.
    """
    notebook = STAGES[stage].notebook

    def summary() -> str:
        if not run.manifest.stages.is_done(stage):
            what = f"{notebook} ran to its end without finishing its stage"
            raise RunError(what, "one of its last cells must call stage.finish")
        return run.stage(stage).summary

    run.update(failure=None)
    parameters = {"run_name": run.name, **settings}
    status = attempt(run, stage, notebooks / f"{notebook}.ipynb", parameters, label, summary)
    if status == 0 and stage == "split":
        for remark in run.stage(stage).results.remarks:
            print(printable(f"    note: {remark}"), flush=True)
    return status


def attempt(
    run: Run, name: str, notebook: Path, parameters: dict[str, Any], label: str, ended: Callable[[], str]
) -> int:
    """Execute a notebook into `notebooks/` of the run folder, and print how it ended.

    Args:
        name: of the stage or the lesson.
        label: stands before the notebook's name, such as `[1/6]`.
        ended: called after the last cell. It gives the words to print, or raises RunError.

    Returns:
        0, 1 after printing what went wrong, or 130 if it was interrupted. If it failed, the run's manifest
        says why.

    Raises:
        RunError: the run folder can't be written.
    """
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    output = run.file(f"notebooks/{notebook.name}")
    try:
        output.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise RunError(f"can't write {output.parent}: {error.strerror}", WRITABLE) from error
    line, traceback = ProgressLine(f"{label} {notebook.stem}"), []
    watch = (
        "from helpers.runs.failures import report_failures; "
        f"report_failures({str(run.path.absolute())!r}, {name!r}); del report_failures"
    )
    try:
        execute(notebook, output, parameters, line, watch)
        line.end(ended())
        return 0
    except KeyboardInterrupt:
        line.end("interrupted")
        return INTERRUPTED
    except RunError as error:
        record_failure(run, name, error)
    except DeadKernelError:
        what = f"the Python process of {notebook.stem} ended in mid-work: killed, or out of memory"
        record_failure(run, name, RunError(what, "close other programs, and run it again"))
    except PapermillExecutionError as error:
        traceback = error.traceback
        if run.manifest.failure_of(name) is None:  # the kernel records what is an Exception, not SystemExit
            what = f"{error.ename}: {error.evalue}".splitlines()[0]
            write_failure(run, Failure(stage=name, kind=error.ename, what=what, time=now()))
    line.end("FAILED")
    _explain(run.manifest.failure_of(name), traceback, output)
    return 1


def execute(
    notebook: Path, output: Path, parameters: dict[str, Any], line: "ProgressLine", first: str
) -> None:
    """Run a notebook through papermill in the folder of the notebooks; what its cells print goes to `line`.

    Args:
        first: a line of Python that its kernel runs before the first cell.

    Raises:
        PapermillExecutionError: a cell failed.
        DeadKernelError: its process ended.
    """
    import papermill
    from traitlets.config import Config

    # The kernel of this environment, not one of the same name in HOME.
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
    os.environ[TRIED] = "1"
    _say_a_dead_kernel_once()
    papermill.execute_notebook(
        notebook,
        output,
        parameters=parameters,
        cwd=NOTEBOOKS,
        progress_bar=False,
        stdout_file=line,
        kernel_name="python3",
        extra_arguments=[
            "--IPKernelApp.log_level=50",  # cells report by themselves
            f"--IPKernelApp.exec_lines={[first]}",
        ],
        # Other users of this machine can't listen to what cells say.
        config=Config({"KernelManager": {"transport_encryption": "auto"}}),
    )


def _say_a_dead_kernel_once() -> None:
    """After Ctrl-C nbclient stops its kernel while a task of its own still watches it. That task then fails
    with nobody waiting for it, and asyncio would print a traceback. Where somebody does wait, `attempt` says
    what happened.
    """
    from jupyter_core.utils import ensure_event_loop
    from nbclient.exceptions import DeadKernelError

    def handle(loop: Any, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), DeadKernelError):
            loop.default_exception_handler(context)

    ensure_event_loop().set_exception_handler(handle)
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # its errors are raised, too


def _explain(failure: Failure | None, traceback: list[str], output: Path) -> None:
    """Why it failed, as the manifest has it. Errors that are nobody's mistake come with their traceback."""
    if failure is None:
        return
    if failure.kind != "AssertionError" and len(traceback) > 1:  # an error of ours renders as one text
        print(printable(without_colours("\n".join(traceback[-TRACEBACK_LINES:]))), file=sys.stderr)
    print(printable(f"course: {failure.what}"), file=sys.stderr)
    if failure.fix:
        print(printable(f"→ {failure.fix}"), file=sys.stderr)
    print(f"The notebook as far as it came: {short(output)}", file=sys.stderr)


def short(path: Path) -> str:
    """A path as one would type it from here."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


class ProgressLine:
    """One line a notebook: on a terminal it follows the notebook's own progress bars, in a log it is printed
    at the end.

    papermill writes the notebook's standard output to it.
    """

    def __init__(self, label: str):
        self.label, self._terminal, self._started = label, sys.stdout.isatty(), time.monotonic()
        self._shown = 0.0
        if self._terminal:
            self._draw("starting")
        else:
            print(f"{label} …", flush=True)

    def write(self, text: str) -> None:
        lines = [line.strip() for line in text.replace("\r", "\n").split("\n") if line.strip()]
        now = time.monotonic()
        if not lines:
            return
        if self._terminal and now - self._shown > 0.2:
            self._shown = now
            self._draw(lines[-1])
        elif not self._terminal and now - max(self._shown, self._started) > 30 and "%|" in lines[-1]:
            self._shown = now
            print(printable(f"    {lines[-1]}"), flush=True)

    def flush(self) -> None:
        sys.stdout.flush()

    def _text(self, text: str) -> str:
        return printable(f"{self.label:26} {clock(time.monotonic() - self._started):>6}  {text}")

    def _draw(self, text: str) -> None:
        width = os.get_terminal_size().columns
        print("\r" + self._text(text)[: width - 1].ljust(width - 1), end="", flush=True)

    def end(self, text: str) -> None:
        if self._terminal:
            self._draw(text)
            print()
        else:
            print(self._text(text), flush=True)
