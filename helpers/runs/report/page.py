"""`course report`: a run on one page of HTML, to read or to send, however far the run came.

Each section shows what is there, and says which stage or file is missing, stale or damaged. Several runs: comparison.py.
"""

import json
from pathlib import Path

from helpers.errors import CourseError, RunError, UsageError
from helpers.files import write_text
from helpers.runs.report.html import page, paragraph, problem, text
from helpers.runs.report.parts import (
    attempt,
    backend_kind,
    interval,
    list_problems,
    model_name,
    small,
    stage_note,
)
from helpers.text import percent
from helpers.runs.report.sections import SECTIONS
from helpers.runs.run_files import load, scores, split_of
from helpers.runs.info import RunInfo, is_sweep, readable_run
from helpers.runs.run import Run
from helpers.paths import runs_dir


def report_runs(
    names: list[str], output: Path | None = None, open_it: bool = False, as_json: bool = False
) -> int:
    """Write the page of one run, or of several side by side, and say where it is. Returns the exit status.

    Args:
        names: of runs, or of sweeps, which stand for their runs; none for the newest run.
        output: the file to write. Default: report.html of the run or the sweep, or comparison.html in the runs folder.
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
    if output and (output.suffix not in (".html", ".htm") or output.is_dir()):
        raise UsageError(
            f"{output} can't be the report: its name must end in .html", "for example: --output report.html"
        )
    if len(runs) == 1:
        path = output or runs[0].path / "report.html"
        html, problems = report_page(runs[0])
        write_text(path, html)
    else:
        from helpers.runs.report.comparison import comparison_page

        path = output or (
            runs_dir() / names[0] / "report.html" if len(names) == 1 else runs_dir() / "comparison.html"
        )
        html, problems = comparison_page(runs)
        write_text(path, html)
    if as_json:
        rows = [{"name": run.name, "state": run.state, "scores": scores(run)[0]} for run in runs]
        print(json.dumps({"path": str(path.absolute()), "runs": rows, "problems": problems}, indent=2))
    else:
        for words in problems:
            print(f"note: {words}")
        print(path)
    if open_it:
        _open(path)
    return 0


def _runs_of(name: str) -> list[RunInfo]:
    """The run of this name, or the runs of a sweep that were begun."""
    if not is_sweep(runs_dir() / name):
        return [readable_run(name)]
    from helpers.runs.sweep.plan import open_sweep

    runs = [
        readable_run(run)
        for run in open_sweep(name).settings
        if (runs_dir() / run / "manifest.json").exists()
    ]
    if not runs:
        raise RunError(
            f"no run of sweep {name} was begun", f"`course sweep --resume --name {name}` begins them"
        )
    return runs


def _open(path: Path) -> None:
    import webbrowser

    if not webbrowser.open(path.absolute().as_uri()):
        raise CourseError(
            f"no browser could be started; the page is written: {path}",
            "open that file yourself, or copy it to a machine with a browser",
        )


def write_report(run: Run) -> Path:
    """Write `report.html` into the run folder. The run need not be complete.

    Raises:
        RunError: the run's manifest is damaged, or the folder can't be written.
    """
    return write_text(run.file("report.html"), report_page(readable_run(str(run.path)))[0])


def report_page(run: RunInfo) -> tuple[str, list[str]]:
    """The page, and what is missing, stale or damaged in the run, a sentence each."""
    problems = list_problems(run)
    sections = []
    for name, heading, stage, parts in SECTIONS:
        note = stage_note(run, stage) if stage else None
        inside = problem(note) if note else ""
        if not stage or _has_something(run, stage):
            inside += "".join(attempt(part, run, problems) for part in parts)
        sections.append((name, heading, inside))
    head = "".join(attempt(part, run, problems) for part in HEAD)
    return page(f"Run {run.name}", head + _gaps(problems), sections), problems


def _has_something(run: RunInfo, stage: str) -> bool:
    """A stage that did not finish may have old files; only training writes what it has while it goes on."""
    return run.statuses.get(stage) in ("done", "stale") or (stage == "train" and stage in run.statuses)


def _gaps(problems: list[str]) -> str:
    if not problems:
        return ""
    return (
        problem("Not all of the run is in this report:")
        + "<ul>"
        + "".join(f"<li>{text(words)}</li>" for words in problems)
        + "</ul>"
    )


# what a reader wants first


def _what(run: RunInfo) -> str:
    results, files = split_of(run)
    sizes = results.get("sizes", {})
    data = ", ".join(Path(row["path"]).name for row in files) or "data that the manifest does not name"
    on = f"{sizes['train']:,} examples of {data}" if "train" in sizes else data
    made = f"Made {run.created:%Y-%m-%d %H:%M} UTC; the run is {run.state}."
    return paragraph(f"{model_name(run)}, tuned on {on}. Backend: {backend_kind(run)}. {made}")


def _accuracy(run: RunInfo) -> str:
    by_model = {row["model"]: row for row in scores(run)[0]}
    if "base model" not in by_model:
        return paragraph("Base and tuned model have no score on the test set.", "verdict")
    base, tuned = by_model["base model"], by_model["tuned model, sampler"]
    apart = base["ci95"][1] < tuned["ci95"][0] or tuned["ci95"][1] < base["ci95"][0]
    return paragraph(
        f"Right answers on the {tuned['total']} test problems: base model {percent(base['accuracy'])} ({interval(base)}) → "
        f"tuned model {percent(tuned['accuracy'])} ({interval(tuned)}). In brackets: 95% intervals; they "
        + ("do not overlap." if apart else "overlap: the paired test below is sharper."),
        "verdict",
    )


def _merge_verdict(run: RunInfo) -> str:
    return _parity_verdict(run, "merge", "Is the merged model the trained one?")


def _vllm_verdict(run: RunInfo) -> str:
    return _parity_verdict(run, "vllm", "Does vLLM answer like the merged model?")


def _parity_verdict(run: RunInfo, stage: str, what: str) -> str:
    if run.statuses.get(stage) != "done":
        return f'<p>{what} <span class="bad">Not checked.</span></p>'
    parity = load(run.path, f"{stage}/parity.json")
    word = (
        '<span class="good">Yes, within the tolerance</span>'
        if parity["passed"]
        else '<span class="bad">No</span>'
    )
    return (
        f"<p>{what} {word}: log-probabilities of {parity['tokens']:,} tokens differ by "
        f"{small(parity['max_abs_logprob_diff'])} nats at most ({small(parity['tolerance'])} are allowed), and by "
        f"{small(parity['mean_abs_logprob_diff'])} in the mean ({small(parity['mean_tolerance'])} are allowed).</p>"
    )


HEAD = (_what, _accuracy, _merge_verdict, _vllm_verdict)
