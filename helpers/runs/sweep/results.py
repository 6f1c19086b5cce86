"""The results of a sweep, a row a run: as a table in the terminal, as `results.csv` and as a plot."""

import csv
import io
from typing import Any

from helpers.errors import RunError
from helpers.files import write_text
from helpers.runs.info import is_under_way, latest_name, look_at
from helpers.runs.lessons import defaults_of_lesson
from helpers.runs.manifest import Manifest
from helpers.runs.result_files import BEST, EVALUATION
from helpers.runs.run import Run
from helpers.runs.settings import OTHER_RUNS, written
from helpers.runs.sweep.lessons import lesson_advice, lesson_cells, lesson_row, lesson_table
from helpers.runs.sweep.plan import Sweep
from helpers.runs.sweep.sharing import split_key
from helpers.text import clock, table

RESULTS, PLOT, PAGE = "results.csv", "metric.png", "report.html"
LOG = "course.log"  # in the folder of a run: all that the last `course run` of the sweep printed
SCORES = ("validation", "base", "test")
REST = ("measure", "validation_loss", "best_step", "seconds", "split_from", "base_from")


def collect(sweep: Sweep) -> list[dict[str, Any]]:
    """A row a run, read from the run folders as they are now.

    Returns:
        For each run `run`, `status` (`done`, `failed`, `under way`, `unfinished`, `not started`, `changed` or
        `damaged`), `settings` (the swept ones), `validation`, `base` and `test` (`correct`, `total`,
        `accuracy`, `ci95`, and `mean_f1` of free text; None if not there), `measure` (what their rate is
        called), `validation_loss`, `best_step`, `seconds`, `split_from`, `base_from`, `flag` (a warning on
        the scores, or empty), `message` and `log`. Where a lesson is run, `scores` (those that it saved, by
        name: `value`, and `ci95`, `correct` and `total` where known) and `seconds` in place of all these
        numbers.
    """
    return [_row(sweep, name) for name in sweep.settings]


def _row(sweep: Sweep, name: str) -> dict[str, Any]:
    run = sweep.run(name)
    row: dict[str, Any] = {"run": name, "status": "not started", "settings": sweep.setting(name)}
    row |= {"scores": {}, "seconds": None} if sweep.lesson else dict.fromkeys((*SCORES, *REST))
    row |= {"flag": "", "message": "", "log": ""}
    if not run.path.exists():
        return row
    info = look_at(run.path)
    if info.problem:
        return row | {"status": "damaged", "message": info.problem}
    try:
        scores = lesson_row(sweep, run, info.manifest) if sweep.lesson else _scores(run, info.manifest)
        return row | scores | _status(sweep, run, info.manifest)
    except RunError as error:
        return row | {"status": "damaged", "message": error.what}


def _status(sweep: Sweep, run: Run, manifest: Manifest) -> dict[str, Any]:
    if changes := _changes(sweep, run.name, manifest):
        return {"status": "changed", "message": changes}
    if is_under_way(run.path):
        return {"status": "under way"}
    if sweep.is_done(run.name):
        return {"status": "done"}
    if failure := sweep.failure(manifest):
        message = f"{failure.stage}: {failure.what}"
        return {"status": "failed", "message": message, "log": str(run.path / LOG)}
    begun = sweep.lesson in manifest.lessons if sweep.lesson else dict(manifest.stages.items())
    return {"status": "unfinished" if begun else "not started"}


def _changes(sweep: Sweep, name: str, manifest: Manifest) -> str:
    """Where stages or a lesson were done with other settings than the sweep gives them; empty if nowhere."""
    found = {}
    wanted = {stage: dict(own) for stage, own in sweep.stage_settings(name).items()}
    used = {stage: dict(entry.settings) for stage, entry in manifest.stages.items()}
    if entry := manifest.lessons.get(sweep.lesson):
        used[sweep.lesson] = defaults_of_lesson(sweep.lesson) | entry.settings
    for stage, settings in used.items():
        own = wanted.get(stage, settings)
        for key in {**settings, **own}:  # one may be of a setting that the notebook has no longer
            there, here = (values.get(key, "not set") for values in (settings, own))
            if there != here and key not in OTHER_RUNS:
                found[key] = f"{key} is {written(there)} there, {written(here)} in the sweep"
    return ", ".join(found.values())


def _scores(run: Run, manifest: Manifest) -> dict[str, Any]:
    stages = {name: entry for name, entry in manifest.stages.items() if entry.status == "done"}
    row: dict[str, Any] = {
        "seconds": round(sum(entry.seconds or 0 for entry in stages.values()), 1) if stages else None,
        "split_from": stages["split"].shared_from if "split" in stages else None,
        "measure": manifest.task.measure if "split" in stages else None,
        "flag": manifest.flag,
    }
    if "train" in stages:
        best = BEST.read(run.path)
        row |= {"validation": best.score.fields(), "validation_loss": best.loss, "best_step": best.step}
    if "evaluate" in stages:
        found, results = EVALUATION.read(run.path), stages["evaluate"].results
        row |= {"base": found.headlines["base"].fields(), "test": found.headlines["tuned"].fields()}
        row["base_from"] = results.base_from if results else None
    return row


def best_metric(sweep: Sweep) -> str:
    """What the best run has the best of: the setting `best_metric`; accuracy if the runs differ in it."""
    values = {sweep.stage_settings(name, "train")["train"].best_metric for name in sweep.settings}
    return values.pop() if len(values) == 1 else "accuracy"


def best_row(sweep: Sweep, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The finished run that is best on the validation data, as notebook 02 compares checkpoints.

    None if no run was scored there, as where a lesson is run.
    """
    if sweep.lesson:
        return None
    from helpers.train.training_log import BEST as GOODNESS

    goodness = GOODNESS[best_metric(sweep)]
    return max(
        _scored(rows),
        key=lambda row: goodness({"accuracy": row["validation"]["accuracy"], "loss": row["validation_loss"]}),
        default=None,
    )


def _scored(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["status"] == "done" and row["validation"]]


# To read


def results_text(sweep: Sweep, rows: list[dict[str, Any]]) -> str:
    """The table, what to make of it, and where the rest is."""
    if sweep.lesson:
        return "\n".join([lesson_table(sweep, rows), *_messages(rows), "", *lesson_advice(rows)])
    best, measure = best_row(sweep, rows), measure_of(rows)
    scored = (f"validation, {measure} (95%)", "loss", f"test, {measure} (95%)")
    head = ["run", *sweep.swept, *scored, "time", "status"]
    lines = [head]
    for row in rows:
        own = [written(row["settings"][name]) for name in sweep.swept]
        loss = "–" if row["validation_loss"] is None else f"{row['validation_loss']:.3f}"
        status = row["status"] + (", best by validation" if row is best else "")
        scores = (_score_text(row["validation"]), loss, _score_text(row["test"]))
        lines.append([row["run"], *own, *scores, clock(row["seconds"]), status])
    numbers = {
        1 + i
        for i, name in enumerate(sweep.swept)
        if all(isinstance(row["settings"][name], (int, float)) for row in rows)
    }
    shown = table(lines, right=numbers | {len(head) - 4, len(head) - 2})
    return "\n".join([shown, *_messages(rows), "", *_advice(sweep, rows, best)])


def _messages(rows: list[dict[str, Any]]) -> list[str]:
    found = []
    for row in rows:
        if row["message"]:
            found.append(f"{row['run']} {row['status']}: {row['message']}")
        if row["log"]:
            found.append(f"    log: {row['log']}")
    return found


def flags_text(rows: list[dict[str, Any]]) -> str:
    """A line for each warning about a measure, with the runs that it is about."""
    flags: dict[str, list[str]] = {}
    for row in rows:
        if row["flag"]:
            flags.setdefault(row["flag"], []).append(row["run"])
    return "\n".join(f"{', '.join(runs)}: {flag}" for flag, runs in flags.items())


def _advice(sweep: Sweep, rows: list[dict[str, Any]], best: dict[str, Any] | None) -> list[str]:
    if best is None:
        return ["no run has a validation score yet"] if "train" in sweep.stages else []
    name = measure_of(rows)
    measure = {
        "accuracy": f"highest {name}, of equals the lowest loss",
        "loss": f"lowest loss, of equals the highest {name}",
    }[best_metric(sweep)]
    latest = "; runs/latest names it" if latest_name() == best["run"] else ""
    lines = [f"best by validation: {best['run']} ({sweep.text(best['run'])}), by {measure}{latest}"]
    others = [row for row in _scored(rows) if row is not best]
    low, high = best["validation"]["ci95"]
    overlap = [
        row for row in others if row["validation"]["ci95"][1] >= low and row["validation"]["ci95"][0] <= high
    ]
    if overlap:
        lines.append(
            f"Intervals that overlap with its own: {len(overlap)} of {len(others)}. So that it is the best "
            "may be luck. More validation problems tell, or other seeds."
        )
    first, *rest = (split_key(sweep, name) for name in sweep.settings)
    if any(key != first for key in rest):
        lines.append(
            "The runs were not all split alike, so their validation problems differ: part of the differences "
            "comes from that."
        )
    if "evaluate" in sweep.stages:
        lines.append(
            "Choose by validation. A run that is chosen by its test score has a test score that is too high."
        )
    return lines


def measure_of(rows: list[dict[str, Any]]) -> str:
    """What the rates of all runs are called; plain words if the runs differ in it, or none has any."""
    names = {row["measure"] for row in rows if row["measure"]}
    return names.pop() if len(names) == 1 else "right answers"


def _score_text(score: dict[str, Any] | None) -> str:
    if score is None:
        return "–"
    low, high = score["ci95"]
    mean_f1 = f", mean F1 {score['mean_f1']:.2f}" if score.get("mean_f1") is not None else ""
    return f"{score['correct']}/{score['total']} {score['accuracy']:4.0%} [{low:.0%}, {high:.0%}]{mean_f1}"


# To keep


def write_results(sweep: Sweep, rows: list[dict[str, Any]]) -> None:
    """Write results.csv into the sweep's folder, and metric.png and report.html if there is something to
    compare.

    Raises:
        RunError: the folder can't be written.
    """
    write_text(sweep.folder / RESULTS, csv_text(sweep, rows))
    best = best_row(sweep, rows)
    scored = [row for row in rows if row["scores"]] if sweep.lesson else _scored(rows)
    names = [name for name in sweep.swept if len({written(row["settings"][name]) for row in scored}) > 1]
    if names and best:
        from helpers.plots import sweep_panels

        figure = sweep_panels(scored, names, best["run"], len(rows) - len(scored))
        temporary = sweep.folder / f".{PLOT}.tmp"
        figure.savefig(temporary, format="png", dpi=110)
        temporary.replace(sweep.folder / PLOT)
    if len(scored) > 1:
        from helpers.runs.report.comparison import write_comparison

        write_comparison([sweep.run(row["run"]) for row in scored], sweep.folder / PAGE)


def csv_text(sweep: Sweep, rows: list[dict[str, Any]]) -> str:
    """The rows as a table with one plain value a cell; shares between 0 and 1, times in seconds."""
    best = best_row(sweep, rows)
    begin = [
        {"run": row["run"], "status": row["status"], "best": "yes" if row is best else ""} | row["settings"]
        for row in rows
    ]
    end = [{key: row[key] for key in ("seconds", "flag", "message", "log")} for row in rows]
    cells = lesson_cells(rows, {*begin[0], *end[0]}) if sweep.lesson else map(_cells, rows)
    lines = [own | scores | rest for own, scores, rest in zip(begin, cells, end, strict=True)]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _cells(row: dict[str, Any]) -> dict[str, Any]:
    """The scores of a row."""
    line: dict[str, Any] = {}
    for kind in SCORES:
        score = row[kind] or {"ci95": (None, None)}
        line |= {f"{kind}_{key}": score.get(key) for key in ("correct", "total", "accuracy", "mean_f1")}
        line |= {f"{kind}_low": score["ci95"][0], f"{kind}_high": score["ci95"][1]}
    return line | {key: row[key] for key in REST}
