"""Several runs on one page: what differs between them, and what came of it. `course report RUN RUN`, and `write_comparison`.

A reader wants to know whether a setting made the difference. So settings come first, then scores with their intervals, then the
paired test on the same problems, which sees smaller differences than the intervals do.
"""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from helpers.errors import DataError, RunError
from helpers.files import write_text
from helpers.runs.report.html import figure, folded, page, paragraph, problem, table, text
from helpers.runs.report.parts import (
    attempt,
    backend_kind,
    exchange,
    interval,
    list_problems,
    model_name,
    p_text,
    small,
    work_seconds,
)
from helpers.text import clock, percent
from helpers.runs.run_files import load, one_line, scores, split_of
from helpers.runs.info import RunInfo, readable_run
from helpers.runs.run import STAGES, Run
from helpers.runs.settings import OTHER_RUNS

FLIPS = 10  # of each kind, for each pair
NONE = "–"  # a run that has no such value


def write_comparison(runs: list[Run], path: Path) -> Path:
    """Write a page that compares runs. They need not be complete.

    Args:
        runs: two or more. The first is the one that the others are paired with.
        path: the HTML file to write.

    Raises:
        DataError: fewer than two runs.
        RunError: a run's manifest is damaged, or the file can't be written.
    """
    if len(runs) < 2:
        raise DataError(f"{len(runs)} runs make no comparison", "give two or more")
    return write_text(path, comparison_page([readable_run(str(run.path)) for run in runs])[0])


def comparison_page(runs: list[RunInfo]) -> tuple[str, list[str]]:
    """The page, and what is missing, stale or damaged in the runs, a sentence each."""
    begun = [
        stage for stage in STAGES if any(stage in run.statuses for run in runs)
    ]  # a sweep ends early: no gap in its runs
    problems = [f"run {run.name}: {words}" for run in runs for words in list_problems(run, begun)]
    sections = [(name, heading, attempt(part, runs, problems)) for name, heading, part in SECTIONS]
    gaps = folded(
        f"{len(problems)} {'thing is' if len(problems) == 1 else 'things are'} missing, stale or damaged in these runs",
        "<ul>" + "".join(f"<li>{text(words)}</li>" for words in problems) + "</ul>",
    )
    head = _overview(runs) + (f'<div class="problem">{gaps}</div>' if problems else "")
    return page(f"{len(runs)} runs compared", head, sections), problems


def _loaded(run: RunInfo, name: str) -> Any:
    """A file of a stage that is done; None where there is none or it is damaged, which `list_problems` has said."""
    try:
        return load(run.path, name) if run.statuses.get(name.split("/")[0]) == "done" else None
    except RunError:
        return None


# what a reader wants first


def _overview(runs: list[RunInfo]) -> str:
    rows = []
    for run in runs:
        by_model = {row["model"]: row for row in scores(run)[0]}
        told = [
            f"{percent(by_model[name]['accuracy'])} ({interval(by_model[name])})"
            if name in by_model
            else NONE
            for name in ("base model", "tuned model, sampler")
        ]
        rows.append([run.name, f"{run.created:%Y-%m-%d %H:%M}", run.progress, *told])
    return table(
        "The runs, in the order in which they were named; 95% intervals in brackets",
        ["run", "made (UTC)", "stages done", "base model", "tuned model"],
        rows,
        code=[0],
    )


# settings


def _settings(runs: list[RunInfo]) -> str:
    different, same = compare_settings(runs)
    out = paragraph("No setting differs.")
    if len(different) > len(runs):  # as many rows as it takes; columns are few on a phone and on paper
        out = table(
            "What each run set",
            ["setting", *(run.name for run in runs)],
            [[name, *values] for name, values in different.items()],
            code=range(len(runs) + 1),
        )
    elif different:
        out = table(
            "What each run set",
            ["run", *different],
            [[run.name, *(values[place] for values in different.values())] for place, run in enumerate(runs)],
            code=range(len(different) + 1),
        )
    rows = [[name, value] for name, value in same.items()]
    return out + folded(
        f"{len(same)} settings are the same in all runs that recorded them",
        table("Settings that are the same", ["setting", "value"], rows, code=[0, 1]),
    )


def compare_settings(runs: list[RunInfo]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Settings that differ, with the value of each run, and those that do not, with the one value.

    A run that did not come to a stage has no values of it, which is no difference. Nor is another run's name.
    """
    by_stage: dict[tuple[str, str], list[str]] = {
        ("base model", ""): [model_name(run) for run in runs],
        ("backend", ""): [backend_kind(run) for run in runs],
    }
    for stage in STAGES:
        recorded = [run.manifest["stages"].get(stage, {}).get("parameters", {}) for run in runs]
        for name in dict.fromkeys(
            name for parameters in recorded for name in parameters if name not in OTHER_RUNS
        ):
            by_stage[name, stage] = [
                json.dumps(parameters[name], ensure_ascii=False) if name in parameters else NONE
                for parameters in recorded
            ]
    different: dict[str, list[str]] = {}
    same: dict[str, str] = {}
    for name in dict.fromkeys(name for name, _ in by_stage):
        stages_of: dict[
            tuple[str, ...], list[str]
        ] = {}  # a setting of several stages is named once where they agree
        for (other, stage), values in by_stage.items():
            if other == name:
                stages_of.setdefault(tuple(values), []).append(stage)
        for values, stages in stages_of.items():
            label = name if len(stages_of) == 1 else f"{name} ({', '.join(stages)})"
            told = {value for value in values if value != NONE}
            if len(told) > 1:
                different[label] = list(values)
            else:
                same[label] = min(told)
    return different, same


def _data(runs: list[RunInfo]) -> str:
    hashes: dict[str, list[str]] = {}
    rows = []
    for place, run in enumerate(runs):
        try:
            results, files = split_of(run)
        except RunError as error:
            rows.append([run.name, one_line(error), *[NONE] * 4])
            continue
        for row in files:
            hashes.setdefault(row["path"], [NONE] * len(runs))[place] = row["sha256"] or "could not be read"
        sizes = results.get("sizes", {})
        rows.append(
            [
                run.name,
                ", ".join(row["path"] for row in files) or "not recorded",
                *(f"{sizes[part]:,}" if part in sizes else NONE for part in ("train", "validation", "test")),
                results.get("leaks", NONE),
            ]
        )
    out = table(
        "Data and split",
        ["run", "data files", "train", "validation", "test", "leaks"],
        rows,
        right=[2, 3, 4, 5],
        code=[0, 1],
    )
    changed = {path: values for path, values in hashes.items() if len(set(values)) > 1}
    if not hashes:
        return out + paragraph(
            "No run recorded hashes of its data files, so whether they read the same can't be told.",
            "problem",
        )
    if not changed:
        return out + paragraph("All runs read the same data files: the SHA-256 hashes are equal.")
    return out + table(
        "Data files that are not the same in all runs, by the first 12 digits of their SHA-256",
        ["run", *changed],
        [[run.name, *(values[place][:12] for values in changed.values())] for place, run in enumerate(runs)],
        code=range(len(changed) + 1),
    )


# scores


def _scores(runs: list[RunInfo]) -> str:
    from helpers.plots import accuracy_by_run

    by_run = {run.name: {row["model"]: row for row in scores(run)[0]} for run in runs}
    rows = [
        [name, model, f"{row['correct']}/{row['total']}", percent(row["accuracy"]), interval(row)]
        for name, models in by_run.items()
        for model, row in models.items()
    ]
    if not rows:
        return problem("No run has a score.")
    without = [name for name, models in by_run.items() if not models]
    out = figure(
        "scores",
        lambda: accuracy_by_run({name: models for name, models in by_run.items() if models}),
        "Right answers of each run's models on its own test set: a dot, and its 95% interval as a bar",
    )
    out += table(
        "Right answers on the test set",
        ["run", "model", "right", "rate", "95% interval"],
        rows,
        right=[2, 3, 4],
        code=[0],
    )
    return out + (problem(f"Without a score: {', '.join(without)}.") if without else "")


def _paired(runs: list[RunInfo]) -> str:
    samples = {run.name: found for run in runs if (found := _loaded(run, "evaluate/samples.jsonl"))}
    without = [run.name for run in runs if run.name not in samples]
    out = (
        problem(
            f"Not in the paired comparison, for want of a usable evaluate/samples.jsonl: {', '.join(without)}."
        )
        if without
        else ""
    )
    groups: dict[frozenset, list[str]] = {}
    for name, rows in samples.items():
        groups.setdefault(
            frozenset((row["index"], row["problem"], row["expected"]) for row in rows), []
        ).append(name)
    if len(groups) > 1:
        listed = list(groups.items())
        out += problem(
            "The runs were not all scored on the same test problems, and only answers to the same problems can be paired. "
            "The intervals above hold, each for itself; a difference between two of these groups may come from the problems."
        )
        out += (
            "<ul>"
            + "".join(
                f"<li>{text(', '.join(names))}: {len(problems)} problems, {len(problems & listed[0][0])} of them in the first set</li>"
                for problems, names in listed
            )
            + "</ul>"
        )
    pairs = [(names[0], other) for names in groups.values() for other in names[1:]]
    return out + (_pairs(pairs, samples) if pairs else paragraph("So there is no pair of runs to compare."))


def _pairs(pairs: list[tuple[str, str]], samples: dict[str, list[dict[str, Any]]]) -> str:
    from helpers.evaluate.paired import mcnemar

    results = {pair: mcnemar(samples[pair[0]], samples[pair[1]]) for pair in pairs}
    adjusted = holm([result["p_value"] for result in results.values()])
    rows = [
        [
            f"{other} to {first}",
            f"{100 * result['difference']:+.1f}",
            len(result["gained"]),
            len(result["lost"]),
            result["both_right"],
            result["both_wrong"],
            p_text(result["p_value"]).removeprefix("= "),
            p_text(p).removeprefix("= "),
        ]
        for ((first, other), result), p in zip(results.items(), adjusted)
    ]
    out = paragraph(
        "The tuned models' answers to the same problems, pair by pair: the first run with these test problems is what the others are "
        "compared with. Only problems that one of two runs got right say anything; p is the chance of so uneven a split if neither were "
        "better (McNemar's exact test). "
        "Each further pair is another chance to be lucky; p by Holm allows for that."
    )
    out += table(
        "Paired comparison on the same test problems",
        ["pair", "difference, points", "gained", "lost", "both right", "both wrong", "p", "p by Holm"],
        rows,
        right=range(1, 8),
        code=[0],
    )
    for (first, other), result in results.items():
        for kind, right in (("gained", other), ("lost", first)):
            flips = result[kind]
            if flips:
                shown = f", the first {FLIPS}" if len(flips) > FLIPS else ""
                out += folded(
                    f"{other} to {first}: {len(flips)} {kind}{shown} (only {right} is right)",
                    "".join(
                        exchange(a["problem"], a["expected"], {first: a["output"], other: b["output"]})
                        for a, b in flips[:FLIPS]
                    ),
                )
    return out


def holm(p_values: list[float]) -> list[float]:
    """Holm's step-down adjustment of p-values for several tests, in the same order."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted


# training, parity, time


def _curves(runs: list[RunInfo]) -> str:
    from helpers.plots import curves

    metrics = {run.name: rows for run in runs if (rows := _loaded(run, "train/metrics.jsonl"))}
    looks = {run.name: rows for run in runs if (rows := _loaded(run, "train/checkpoints.jsonl"))}
    out = ""
    if metrics:
        lines = {name: [(row["step"], row["train_nll"]) for row in rows] for name, rows in metrics.items()}
        out += figure(
            "training-loss",
            lambda: curves(lines, "NLL, nats per answer token", "Loss of the training batches", log=True),
            "Loss of each run's training batches over optimizer steps",
        )
    if looks:
        losses = {name: [(row["step"], row["loss"]) for row in rows] for name, rows in looks.items()}
        rates = {
            name: [(row["step"], 100 * row["correct"] / row["total"]) for row in rows]
            for name, rows in looks.items()
        }
        out += figure(
            "validation-loss",
            lambda: curves(losses, "NLL, nats per answer token", "Loss on the validation part", log=True),
            "Loss on each run's validation part over optimizer steps",
        )
        out += figure(
            "validation",
            lambda: curves(rates, "right answers, %", "Validation accuracy"),
            "Right answers on each run's validation part over optimizer steps",
        )
        rows = [
            [
                name,
                len(metrics[name]) if name in metrics else NONE,
                f"{rows[0]['loss']:.3f}",
                f"{rows[-1]['loss']:.3f}",
                f"{rows[0]['correct']}/{rows[0]['total']}",
                f"{rows[-1]['correct']}/{rows[-1]['total']}",
            ]
            for name, rows in looks.items()
        ]
        out += table(
            "Training in numbers",
            ["run", "steps", "validation loss, first", "last", "validation right, first", "last"],
            rows,
            right=range(1, 6),
            code=[0],
        )
    return out or problem("No run has finished training.")


def _parity(runs: list[RunInfo]) -> str:
    rows = []
    for run in runs:
        for stage, pair in (("merge", "merged model to trained model"), ("vllm", "vLLM to merged model")):
            found = _loaded(run, f"{stage}/parity.json")
            rows.append(
                [
                    run.name,
                    pair,
                    *(
                        (small(found["max_abs_logprob_diff"]), small(found["tolerance"]), found["passed"])
                        if found
                        else (NONE, NONE, "not checked")
                    ),
                ]
            )
    return table(
        "Log-probabilities of the same tokens: largest difference in nats",
        ["run", "compared", "difference", "tolerance", "within"],
        rows,
        right=[2, 3],
        code=[0],
    )


def _times(runs: list[RunInfo]) -> str:
    kinds = list(
        dict.fromkeys(
            kind for run in runs for entry in run.manifest["stages"].values() for kind in work_seconds(entry)
        )
    )
    by_stage, by_work = [], []
    for run in runs:
        stages = run.manifest["stages"]
        spent = {stage: entry["seconds"] for stage, entry in stages.items() if "seconds" in entry}
        by_stage.append(
            [
                run.name,
                *(clock(spent[stage]) if stage in spent else NONE for stage in STAGES),
                clock(sum(spent.values())),
            ]
        )
        metrics = _loaded(run, "train/metrics.jsonl")
        speed = f"{median(row['tokens_per_second'] for row in metrics):,.0f}" if metrics else NONE
        by_work.append(
            [
                run.name,
                *(
                    clock(sum(work_seconds(entry).get(kind, 0) for entry in stages.values()))
                    for kind in kinds
                ),
                speed,
            ]
        )
    return table(
        "Time of each stage, minutes:seconds",
        ["run", *STAGES, "in all"],
        by_stage,
        right=range(1, 8),
        code=[0],
    ) + table(
        "What of it went to which work, and the median speed of training",
        ["run", *kinds, "tokens/s in training"],
        by_work,
        right=range(1, 2 + len(kinds)),
        code=[0],
    )


def _versions(runs: list[RunInfo]) -> str:
    packages = [run.manifest.get("packages", {}) for run in runs]
    names = list(dict.fromkeys(name for versions in packages for name in versions))
    different = [name for name in names if len({versions.get(name) for versions in packages}) > 1]
    if not different:
        return paragraph(
            f"All versions are the same: {', '.join(f'{name} {packages[0][name]}' for name in names)}."
        )
    same = [f"{name} {packages[0][name]}" for name in names if name not in different]
    return table(
        "Packages whose versions differ",
        ["run", *different],
        [
            [run.name, *(versions.get(name, "not installed") for name in different)]
            for run, versions in zip(runs, packages)
        ],
        code=range(len(different) + 1),
    ) + (paragraph(f"The same in all: {', '.join(same)}.") if same else "")


SECTIONS: tuple[tuple[str, str, Callable[[list[RunInfo]], str]], ...] = (
    ("settings", "Settings that differ", _settings),
    ("scores", "Scores", _scores),
    ("paired", "The same problems, run by run", _paired),
    ("curves", "Training curves", _curves),
    ("parity", "Parity", _parity),
    ("times", "Times", _times),
    ("data", "Data", _data),
    ("versions", "Versions", _versions),
)
