"""`course report`: which page to write, where, and what to say of it."""

import json
import webbrowser
from pathlib import Path

from helpers.errors import CourseError, RunError, UsageError
from helpers.files import write_text
from helpers.paths import runs_dir
from helpers.runs.info import RunInfo, is_sweep, readable_run
from helpers.runs.report.comparison import comparison_page
from helpers.runs.report.page import report_page
from helpers.runs.result_files import Results
from helpers.runs.sweep.plan import open_sweep
from helpers.text import printable


def report_runs(
    names: list[str], output: Path | None = None, open_it: bool = False, as_json: bool = False
) -> int:
    """Write the page of one run, or of several side by side, and say where it is. Returns the exit status.

    Args:
        names: of runs, or of sweeps, which stand for their runs; none for the newest run.
        output: the file to write. Default: report.html of the run or the sweep, or comparison.html in the
            runs folder.
        open_it: show it in a browser.
        as_json: print path, runs and problems as JSON.

    Raises:
        UsageError: a run is named twice, or the output is no HTML file.
        RunError: there is no such run, it is damaged, or the file can't be written.
    """
    runs = [run for name in names or ["latest"] for run in _runs_of(name)]
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise UsageError(
            f"a run is named twice: {', '.join(run.name for run in runs)}",
            "name each run once; `latest` is one of them",
        )
    if output and (output.suffix.lower() not in (".html", ".htm") or output.is_dir()):
        raise UsageError(
            f"{output} can't be the report: its name must end in .html", "for example: --output report.html"
        )
    path = output or _usual_place(names, runs)
    html, problems = report_page(runs[0]) if len(runs) == 1 else comparison_page(runs)
    write_text(path, html)
    _tell(path, runs, problems, as_json)
    if open_it:
        _open(path)
    return 0


def _runs_of(name: str) -> list[RunInfo]:
    """The run of this name, or the runs of a sweep that were begun."""
    if not is_sweep(runs_dir() / name):
        return [readable_run(name)]
    begun = [run for run in open_sweep(name).settings if (runs_dir() / run / "manifest.json").exists()]
    if not begun:
        raise RunError(
            f"no run of sweep {name} was begun", f"`course sweep --resume --name {name}` begins them"
        )
    return [readable_run(run) for run in begun]


def _usual_place(names: list[str], runs: list[RunInfo]) -> Path:
    if len(runs) == 1:
        return runs[0].path / "report.html"
    return runs_dir() / names[0] / "report.html" if len(names) == 1 else runs_dir() / "comparison.html"


def _tell(path: Path, runs: list[RunInfo], problems: list[str], as_json: bool) -> None:
    if not as_json:
        print(*(printable(f"note: {words}") for words in problems), path, sep="\n")
        return
    rows = []
    for run in runs:
        scores = [{"model": model} | own.fields() for model, own in Results(run).headlines.items()]
        rows.append({"name": run.name, "state": run.state, "scores": scores})
    print(json.dumps({"path": str(path.absolute()), "runs": rows, "problems": problems}, indent=2))


def _open(path: Path) -> None:
    if not webbrowser.open(path.absolute().as_uri()):
        raise CourseError(
            f"no browser could be started; the page is written: {path}",
            "open that file yourself, or copy it to a machine with a browser",
        )
