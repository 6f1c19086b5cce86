"""What came out of a sweep: a row a run, as a table in the terminal, `results.csv`, and the plot `metric.png`."""

from helpers.text import plural
import csv
import io
import json
from typing import Any

from helpers.errors import RunError
from helpers.files import read_json, write_text
from helpers.runs.info import is_under_way, latest_name, look_at
from helpers.text import table
from helpers.runs.run import Run
from helpers.runs.settings import notebook_parameters, stage_values
from helpers.runs.sweep.sweep import LOG, Sweep, failure, is_done, split_key
from helpers.text import clock
from helpers.runs.sweep.settings import setting_text

RESULTS, PLOT, PAGE = "results.csv", "metric.png", "report.html"
SCORES = ("validation", "base", "test")


def collect(sweep: Sweep) -> list[dict[str, Any]]:
    """A row a run, read from the run folders as they are now.

    Returns:
        For each run `run`, `status` (`done`, `failed`, `under way`, `unfinished`, `not started`, `changed` or `damaged`), `parameters`
        (the swept ones), `validation`, `base` and `test` (`correct`, `total`, `accuracy`, `ci95`; None if not there), `validation_loss`,
        `best_step`, `seconds`, `split_from`, `base_from`, `message` and `log`.
    """
    return [_row(sweep, name) for name in sweep.parameters]


def _row(sweep: Sweep, name: str) -> dict[str, Any]:
    run = sweep.run(name)
    later = dict.fromkeys(
        ("validation", "validation_loss", "best_step", "base", "test", "seconds", "split_from", "base_from")
    )
    row = {
        "run": name,
        "status": "not started",
        "parameters": sweep.setting(name),
        **later,
        "message": "",
        "log": "",
    }
    if not run.path.exists():
        return row
    if problem := look_at(run.path).problem:
        return row | {"status": "damaged", "message": problem}
    try:
        return row | _scores(run) | _status(sweep, run)
    except (RunError, KeyError, TypeError) as error:
        return row | {"status": "damaged", "message": " ".join(str(error).split())}


def _status(sweep: Sweep, run: Run) -> dict[str, Any]:
    if changes := _changes(sweep, run):
        return {"status": "changed", "message": changes}
    if is_under_way(run.path):
        return {"status": "under way"}
    if found := failure(run):
        where = f"{found['stage']}: " if found["stage"] else ""
        return {"status": "failed", "message": where + found["message"], "log": str(run.path / LOG)}
    return {
        "status": "done"
        if is_done(sweep, run.name)
        else "unfinished"
        if run.manifest["stages"]
        else "not started"
    }


def _changes(sweep: Sweep, run: Run) -> str:
    """Where stages were done with other parameters than the sweep gives them; empty if nowhere."""
    values = stage_values(sweep.parameters[run.name], notebook_parameters(), sweep.until)
    found = {}
    for stage, entry in run.manifest["stages"].items():
        for key, value in entry.get("parameters", {}).items():
            wanted = values.get(stage, {}).get(key, value)
            if wanted != value and key != "base_run":
                found[key] = f"{key} is {value!r} there, {wanted!r} in the sweep"
    return ", ".join(found.values())


def _scores(run: Run) -> dict[str, Any]:
    stages = {name: entry for name, entry in run.manifest["stages"].items() if entry["status"] == "done"}
    row: dict[str, Any] = {
        "seconds": round(sum(entry["seconds"] for entry in stages.values()), 1) if stages else None,
        "split_from": stages.get("split", {}).get("shared_from"),
    }
    if "train" in stages:
        best = read_json(run.file("train/best_checkpoint.json"))
        row |= {
            "validation": _score(best["correct"], best["total"]),
            "validation_loss": best["loss"],
            "best_step": best["step"],
        }
    if "evaluate" in stages:
        found = read_json(run.file("evaluate/model_evaluation.json"))
        row |= {
            "base": _score(found["base_correct"], found["test_size"]),
            "test": _score(found["test_correct"], found["test_size"]),
            "base_from": found.get("base_from"),
        }
    return row


def _score(correct: int, total: int) -> dict[str, Any]:
    from helpers.evaluate.score import wilson_interval

    return {
        "correct": correct,
        "total": total,
        "accuracy": correct / total,
        "ci95": list(wilson_interval(correct, total)),
    }


def best_metric(sweep: Sweep) -> str:
    """What the best run has the best of: the parameter `best_metric`; accuracy if the runs differ in it."""
    values = {
        stage_values(own, notebook_parameters(), "train")["train"]["best_metric"]
        for own in sweep.parameters.values()
    }
    return values.pop() if len(values) == 1 else "accuracy"


def best_row(sweep: Sweep, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The finished run that is best on the validation data, as notebook 02 compares checkpoints. None if none was scored there."""
    from helpers.train.log import BEST

    goodness = BEST[best_metric(sweep)]
    scored = [row for row in rows if row["status"] == "done" and row["validation"]]
    return max(
        scored,
        key=lambda row: goodness({"accuracy": row["validation"]["accuracy"], "loss": row["validation_loss"]}),
        default=None,
    )


# To read


def results_text(sweep: Sweep, rows: list[dict[str, Any]]) -> str:
    """The table, what to make of it, and where the rest is."""
    best = best_row(sweep, rows)
    head = ["run", *sweep.swept, "validation (95%)", "loss", "test (95%)", "time", "status"]
    lines = [head]
    for row in rows:
        own = [_text(row["parameters"][name]) for name in sweep.swept]
        loss = "–" if row["validation_loss"] is None else f"{row['validation_loss']:.3f}"
        time = "–" if row["seconds"] is None else clock(row["seconds"])
        status = row["status"] + (", best by validation" if row is best else "")
        lines.append(
            [row["run"], *own, _score_text(row["validation"]), loss, _score_text(row["test"]), time, status]
        )
    numbers = {
        1 + i
        for i, name in enumerate(sweep.swept)
        if all(_is_number(row["parameters"][name]) for row in rows)
    }
    text = [table(lines, right=numbers | {len(head) - 4, len(head) - 2})]
    for row in rows:
        if row["message"]:
            text.append(
                f"{row['run']} {row['status']}: {row['message']}"
                + (f"\n    log: {row['log']}" if row["log"] else "")
            )
    return "\n".join([*text, "", *_advice(sweep, rows, best)])


def _advice(sweep: Sweep, rows: list[dict[str, Any]], best: dict[str, Any] | None) -> list[str]:
    if best is None:
        return ["no run has a validation score yet"] if "train" in sweep.stages else []
    measure = {
        "accuracy": "highest accuracy, of equals the lowest loss",
        "loss": "lowest loss, of equals the highest accuracy",
    }
    latest = "; runs/latest names it" if latest_name() == best["run"] else ""
    lines = [
        f"best by validation: {best['run']} ({setting_text(best['parameters'])}), by {measure[best_metric(sweep)]}{latest}"
    ]
    others = [row for row in rows if row is not best and row["status"] == "done" and row["validation"]]
    low, high = best["validation"]["ci95"]
    overlap = [
        row for row in others if row["validation"]["ci95"][1] >= low and row["validation"]["ci95"][0] <= high
    ]
    if overlap:
        lines.append(
            f"Intervals that overlap with its own: {len(overlap)} of {len(others)}. So that it is the best may be luck. "
            "More validation problems tell, or other seeds."
        )
    if len({json.dumps(split_key(sweep, name), sort_keys=True) for name in sweep.parameters}) > 1:
        lines.append(
            "The runs were not all split alike, so their validation problems differ: part of the differences comes from that."
        )
    if "evaluate" in sweep.stages:
        lines.append(
            "Choose by validation. A run that is chosen by its test score has a test score that is too high."
        )
    return lines


def _score_text(score: dict[str, Any] | None) -> str:
    if score is None:
        return "–"
    low, high = score["ci95"]
    return f"{score['correct']}/{score['total']} {score['accuracy']:4.0%} [{low:.0%}, {high:.0%}]"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# To keep


def write_results(sweep: Sweep, rows: list[dict[str, Any]]) -> None:
    """Write results.csv into the sweep's folder, and metric.png and report.html if there is something to compare.

    Raises:
        RunError: the folder can't be written.
    """
    from helpers.runs.report.comparison import write_comparison
    from helpers.plots import sweep_panels

    write_text(sweep.folder / RESULTS, csv_text(sweep, rows))
    scored = [row for row in rows if row["status"] == "done" and row["validation"]]
    names = [name for name in sweep.swept if len({_text(row["parameters"][name]) for row in scored}) > 1]
    if names:
        figure = sweep_panels(scored, names, best_row(sweep, rows)["run"], len(rows) - len(scored))
        temporary = sweep.folder / f".{PLOT}.tmp"
        figure.savefig(temporary, format="png", dpi=110)
        temporary.replace(sweep.folder / PLOT)
    if len(scored) > 1:
        write_comparison([sweep.run(row["run"]) for row in scored], sweep.folder / PAGE)


def csv_text(sweep: Sweep, rows: list[dict[str, Any]]) -> str:
    """The rows as a table with one plain value a cell; shares between 0 and 1, times in seconds."""
    best = best_row(sweep, rows)
    lines = []
    for row in rows:
        line = {"run": row["run"], "status": row["status"], "best": "yes" if row is best else ""} | row[
            "parameters"
        ]
        for kind in SCORES:
            score = row[kind] or {"correct": None, "total": None, "accuracy": None, "ci95": (None, None)}
            line |= {f"{kind}_{key}": score[key] for key in ("correct", "total", "accuracy")}
            line |= {f"{kind}_low": score["ci95"][0], f"{kind}_high": score["ci95"][1]}
        plain = ("validation_loss", "best_step", "seconds", "split_from", "base_from", "message", "log")
        lines.append(line | {key: row[key] for key in plain})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


# Plan


def plan_text(plan: dict[str, Any]) -> str:
    """What a sweep would be: the runs, what they share, time and cost.

    Args:
        plan: from `helpers.runs.sweep.settings.estimate_sweep`.
    """
    swept = list(plan["runs"][0]["parameters"])
    rows = [["run", *swept, "about"]]
    for row in plan["runs"]:
        time = "–" if row["seconds"] is None else clock(row["seconds"])
        rows.append([row["run"], *(_text(row["parameters"][name]) for name in swept), time])
    data, count = plan["first"]["data"], len(plan["runs"])
    first = " (first run)" if plan["splits"] > 1 else ""
    lines = [
        f"sweep {plan['sweep']}: {plural(count, 'run')} until {plan['until']}, in {plan['runs_dir']}",
        "",
        table(rows, right={len(rows[0]) - 1}),
        "",
        f"data      {data['train']:,} to train on, {data['validation']:,} to choose by, {data['test']:,} to test on{first}",
        f"shared    {plural(plan['splits'], 'split')} for {plural(count, 'run')}"
        + (f"; the base model is asked {plural(plan['base_asked'], 'time')}" if plan["base_asked"] else ""),
    ]
    return "\n".join([*lines, time_line(plan), *_cost_lines(plan)])


def time_line(plan: dict[str, Any], done: list[str] | tuple[str, ...] = ()) -> str:
    """About how long it takes.

    Args:
        plan: from `helpers.runs.sweep.settings.estimate_sweep`.
        done: names of runs that are done already.
    """
    if plan["seconds"] is None:
        return "time      unknown: speeds were measured for the local base model on the stub only"
    left = sum(row["seconds"] for row in plan["runs"] if row["run"] not in done)
    saved = plan["seconds_apart"] - plan["seconds"]
    without = f", {clock(saved)} less than without sharing" if saved and not done else ""
    return f"time      about {clock(left)} (min:s) on the stub with two free cores, one run after the other{without}; an estimate"


def _cost_lines(plan: dict[str, Any]) -> list[str]:
    cost, backend = plan["cost"], plan["first"]["backend"]
    if cost is None:
        return [
            "cost      none: the stub works on this machine"
            if backend == "stub"
            else "cost      unknown: ask who runs the server"
        ]
    tokens = ", ".join(f"{amount:,} {kind}" for kind, amount in cost["tokens"].items())
    if cost["missing"]:
        return [
            f"cost      tokens: {tokens}; in dollars unknown: helpers/runs/prices.toml lacks the price of {', '.join(cost['missing'])}"
        ]
    return [
        f"cost      tokens: {tokens}; about ${cost['dollars']:.2f}, at most ${cost['dollars_at_most']:.2f}: an estimate, by "
        f"the prices of {cost['date'] or 'no date'} in {cost['prices']}"
    ]
