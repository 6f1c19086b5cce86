"""The sections of a run's page, one function a part. Each raises a RunError where a file that it needs is missing or damaged."""

import json
from collections.abc import Callable
from statistics import median
from typing import Any

from helpers.errors import RunError
from helpers.runs.report.html import figure, folded, paragraph, problem, table, text
from helpers.text import clock, percent
from helpers.runs.report.parts import exchange, interval, p_text, small, stage_note, work_seconds
from helpers.runs.run_files import base_and_tuned, load, one_line, scores, split_of
from helpers.runs.info import RunInfo
from helpers.text import size_text
from helpers.course.tables import artefacts, changed_parameters
from helpers.runs.settings import notebook_parameters, run_parameters
from helpers.evaluate.paired import measures_text
from helpers.evaluate.tasks import Task

SAMPLES = 6  # right ones, and as many wrong ones
FLIPS = 60  # of each kind
CATEGORIES = 25  # more than these are no figure any more


def _settings(run: RunInfo) -> str:
    known = notebook_parameters()
    parameters, notes = run_parameters(run.manifest, known)
    changed = changed_parameters(parameters, known)
    rows = [
        [
            name,
            _plain(row["value"]),
            ", ".join(f"{_plain(value)} ({stage})" for stage, value in row["defaults"].items()),
        ]
        for name, row in changed.items()
    ]
    chosen = (
        table(
            "Settings that differ from the notebooks' defaults of today",
            ["setting", "value", "default"],
            rows,
            code=[0, 1],
        )
        if rows
        else paragraph("All settings are the notebooks' defaults.")
    )
    like = paragraph(f"Started like run {run.manifest['like']}.") if run.manifest.get("like") else ""
    recorded = [
        [stage, name, _plain(value)]
        for stage, entry in run.manifest["stages"].items()
        for name, value in entry.get("parameters", {}).items()
    ]
    everything = folded(
        f"All {len(recorded)} settings, by stage",
        table(
            "All settings, as each stage recorded them", ["stage", "setting", "value"], recorded, code=[1, 2]
        ),
    )
    return like + chosen + "".join(paragraph(f"Note: {note}.") for note in notes) + everything


def _plain(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _data(run: RunInfo) -> str:
    results, files = split_of(run)
    out = paragraph("The run kept no record of its data files.", "problem")
    if files:
        out = table(
            "Data files that were read",
            ["file", "size", "SHA-256"],
            [[row["path"], size_text(row["bytes"]), row["sha256"] or "could not be read"] for row in files],
            right=[1],
            code=[0, 2],
        )
    left_out = results.get("left_out", {})
    out += table(
        "The split",
        ["part", "records", "left out by a limit"],
        [
            [part, f"{size:,}", f"{left_out.get(part, 0):,}"]
            for part, size in results.get("sizes", {}).items()
        ],
        right=[1, 2],
    )
    facts = []
    if "records" in results:
        facts.append(f"{results['records']:,} records were read.")
    if "leaks" in results:
        facts.append(f"Leaks, test problems that are in the training part too: {results['leaks']}.")
    if "duplicates" in results:
        found = results["duplicates"]
        facts.append(
            f"Groups of equal problems: {found['exact_groups']}; of nearly equal ones: {found['near_groups']}; "
            f"records in them: {found['records']}. A group stays in one part."
        )
    if results.get("stratified_by"):
        facts.append(f"Stratified by {results['stratified_by']}.")
    if results.get("unseen_templates"):
        facts.append(f"Templates kept for the test only: {', '.join(results['unseen_templates'])}.")
    facts += [f"Note: {note}" for note in results.get("notes", [])]
    return out + "<ul>" + "".join(f"<li>{text(fact)}</li>" for fact in facts) + "</ul>"


def _loss(run: RunInfo) -> str:
    from helpers.plots import curves

    metrics, looks = load(run.path, "train/metrics.jsonl"), load(run.path, "train/checkpoints.jsonl")
    if not metrics:
        raise RunError("train/metrics.jsonl holds no step")
    lines = {
        "training batch": [(row["step"], row["train_nll"]) for row in metrics],
        "validation": [(row["step"], row["loss"]) for row in looks],
    }
    first, last = metrics[0], metrics[-1]
    words = f"Loss: {first['train_nll']:.3f} in the batch of step {first['step']}, {last['train_nll']:.3f} in that of step {last['step']}"
    if looks:
        first, last = looks[0], looks[-1]
        words += f"; on the validation part {first['loss']:.3f} at step {first['step']}, {last['loss']:.3f} at step {last['step']}"
    return figure("loss", lambda: curves(lines, "NLL, nats per answer token", "Loss", log=True), words)


def _validation(run: RunInfo) -> str:
    from helpers.evaluate.score import wilson_interval
    from helpers.plots import curves

    looks = load(run.path, "train/checkpoints.jsonl")
    if not looks:
        raise RunError("train/checkpoints.jsonl holds no checkpoint")
    best = (
        load(run.path, "train/best_checkpoint.json") if run.statuses["train"] in ("done", "stale") else None
    )
    name = "validation, 95% interval"
    lines = {name: [(row["step"], 100 * row["correct"] / row["total"]) for row in looks]}
    limits = {
        name: [tuple(100 * end for end in wilson_interval(row["correct"], row["total"])) for row in looks]
    }
    star = (best["step"], 100 * best["correct"] / best["total"]) if best else None
    chosen = (
        f"; chosen: step {best['step']}, {best['correct']} of {best['total']}"
        if best
        else "; no checkpoint is chosen yet"
    )
    return figure(
        "validation",
        lambda: curves(lines, "right answers, %", "Validation accuracy", star=star, limits=limits),
        f"Right answers on the validation part: {looks[0]['correct']} of {looks[0]['total']} at step {looks[0]['step']}, "
        f"{looks[-1]['correct']} of {looks[-1]['total']} at step {looks[-1]['step']}{chosen}",
    )


def _looks(run: RunInfo) -> str:
    rows = [
        [row["step"], f"{row['loss']:.3f}", f"{row['correct']}/{row['total']}"]
        for row in load(run.path, "train/checkpoints.jsonl")
    ]
    return folded(
        "The checkpoints as a table",
        table(
            "Checkpoints, scored on the validation part",
            ["step", "loss, nats a token", "right"],
            rows,
            right=[0, 1, 2],
        ),
    )


def _scores(run: RunInfo) -> str:
    rows, problems = scores(run)
    out = "".join(map(problem, problems))
    if note := stage_note(run, "evaluate"):
        out += problem(note)
    if rows:
        out += table(
            "Right answers on the test set",
            ["model", "right", "rate", "95% interval"],
            [
                [row["model"], f"{row['correct']}/{row['total']}", percent(row["accuracy"]), interval(row)]
                for row in rows
            ],
            right=[1, 2, 3],
        )
    return out


def _task(run: RunInfo) -> str:
    """What makes an answer right, and what the task measures beside the rate of right ones."""
    task = Task(**split_of(run)[0].get("task", {}))
    out = paragraph(f"An answer is right if {task.rule}.")
    if run.statuses.get("evaluate") not in ("done", "stale"):
        return out
    measures = load(run.path, "evaluate/model_evaluation.json").get("measures")
    try:
        lines = measures_text(task, **measures).splitlines() if measures else []
    except KeyError as error:
        raise RunError(f"evaluate/model_evaluation.json is damaged: measures name no {error}") from error
    return out + ("<ul>" + "".join(f"<li>{text(line)}</li>" for line in lines) + "</ul>" if lines else "")


def _paired(run: RunInfo) -> str:
    evaluation = load(run.path, "evaluate/model_evaluation.json")
    return paragraph(
        f"On the same problems the tuned model gained {evaluation['gained']} and lost {evaluation['lost']} against the base model. "
        f"McNemar's exact test: p {p_text(evaluation['p_value'])}, the chance of a split at least as uneven if neither model were better."
    )


def _by_category(run: RunInfo) -> str:
    from helpers.plots import accuracy_by_category

    evaluation = load(run.path, "evaluate/model_evaluation.json")
    out = ""
    for kind, ours, theirs in (
        ("category", "by_category", "base_by_category"),
        ("kind of template", "by_template", "base_by_template"),
    ):
        rows = []
        for name, tuned in evaluation.get(ours, {}).items():
            base = evaluation.get(theirs, {}).get(name)
            rows.append(
                [
                    name,
                    f"{base['correct']}/{base['total']}" if base else "–",
                    f"{tuned['correct']}/{tuned['total']}",
                    percent(tuned["accuracy"]),
                    interval(tuned),
                ]
            )
        if rows:
            out += table(
                f"Right answers by {kind}",
                [kind, "base", "tuned", "rate, tuned", "95% interval, tuned"],
                rows,
                right=[1, 2, 3, 4],
            )
    base, tuned = base_and_tuned(evaluation)
    if not tuned["by_category"] or base["by_category"].keys() != tuned["by_category"].keys():
        return out + paragraph(
            "The test problems have no category, or other ones for the two models, so there is no figure."
        )
    if len(tuned["by_category"]) > CATEGORIES:
        return out + paragraph(f"{len(tuned['by_category'])} categories are too many for a figure.")

    def draw() -> Any:
        drawn = accuracy_by_category(base, tuned)
        drawn.set_size_inches(4.6, drawn.get_size_inches()[1])
        axes = drawn.axes[0]
        axes.set(
            title="", xlim=(-8, 108), ylim=(len(tuned["by_category"]) + 0.6, -0.8)
        )  # room for the numbers at the edges
        return drawn

    return (
        figure(
            "categories",
            draw,
            "Right answers of base and tuned model by category, with 95% intervals; numbers: right of all",
        )
        + out
    )


def _samples(run: RunInfo) -> str:
    tuned = load(run.path, "evaluate/samples.jsonl")
    try:
        before, out = {row["index"]: row for row in load(run.path, "evaluate/base_samples.jsonl")}, ""
    except RunError as error:  # the tuned model's answers are worth reading without
        before, out = {}, problem(one_line(error))
    out += paragraph(
        f"By rule: the first {SAMPLES} test problems that the tuned model got right, and the first {SAMPLES} that it got wrong. "
        f"All {len(tuned)} are in evaluate/samples.jsonl."
    )
    for heading, rows in (
        ("Right", [row for row in tuned if row["score"]]),
        ("Wrong", [row for row in tuned if not row["score"]]),
    ):
        out += f"<h3>{heading}: {min(SAMPLES, len(rows))} of {len(rows)}</h3>"
        for row in rows[:SAMPLES]:
            base = before.get(row["index"])
            answers = {"base model" + _verdict(base): base["output"]} if base else {}
            out += exchange(
                row["problem"], row["expected"], answers | {"tuned model" + _verdict(row): row["output"]}
            )
    return out


def _verdict(row: dict[str, Any]) -> str:
    return ", right" if row["score"] else ", wrong"


def _flips(run: RunInfo) -> str:
    flips = load(run.path, "evaluate/flips.jsonl")
    out = paragraph(
        "Test problems that one of the two models got right and the other did not, each to unfold."
    )
    for kind, meaning in (
        ("gained", "only the tuned model is right"),
        ("lost", "only the base model is right"),
    ):
        rows = [row for row in flips if row["flip"] == kind]
        shown = paragraph(f"The first {FLIPS}; all are in evaluate/flips.jsonl.") if len(rows) > FLIPS else ""
        each = (
            folded(
                row["problem"][:200] + ("…" if len(row["problem"]) > 200 else ""),
                exchange(
                    row["problem"], row["expected"], {"base model": row["base"], "tuned model": row["tuned"]}
                ),
            )
            for row in rows[:FLIPS]
        )
        out += (
            folded(f"{kind.capitalize()}: {len(rows)} ({meaning})", shown + "".join(each))
            if rows
            else paragraph(f"{kind.capitalize()}: none.")
        )
    return out


def _merge_parity(run: RunInfo) -> str:
    parity = load(run.path, "merge/parity.json")
    rows = [parity, *(parity[name] for name in ("peft", "negative_control") if name in parity)]
    control = (
        " The last row is a control: the untuned base model must fail."
        if "negative_control" in parity
        else ""
    )
    return _parity_table("Merged model and adapter beside the trained model", rows) + paragraph(
        f"The tolerance follows from the precision of the numbers and the model's size, for these prompts; notebook 05 says how.{control}"
    )


def _vllm_parity(run: RunInfo) -> str:
    return _parity_table("vLLM beside the merged model", [load(run.path, "vllm/parity.json")])


def _parity_table(caption: str, rows: list[dict[str, Any]]) -> str:
    return table(
        caption,
        [
            "compared",
            "prompts",
            "tokens",
            "largest difference, nats",
            "tolerance",
            "mean difference",
            "its tolerance",
            "same token chosen",
            "within",
        ],
        [
            [
                f"{row['other']} to {row['reference']}",
                row["prompts"],
                f"{row['tokens']:,}",
                small(row["max_abs_logprob_diff"]),
                small(row["tolerance"]),
                small(row["mean_abs_logprob_diff"]),
                small(row["mean_tolerance"]),
                "–" if row["token_agreement"] is None else percent(row["token_agreement"]),
                row["passed"],
            ]
            for row in rows
        ],
        right=range(1, 8),
    )


def _training_speed(run: RunInfo) -> str:
    metrics = load(run.path, "train/metrics.jsonl")
    return (
        paragraph(
            f"Training: {median(row['tokens_per_second'] for row in metrics):,.0f} tokens a second, the median of {len(metrics)} steps."
        )
        if metrics
        else ""
    )


def _vllm_speed(run: RunInfo) -> str:
    from helpers.plots import throughput_plot

    if note := stage_note(run, "vllm"):
        return problem(note)
    speed = load(run.path, "vllm/evaluation.json")
    rows, others = speed["throughput"], speed["others"]
    if not rows:
        return paragraph("vLLM: the speed test was left out (throughput_tokens = 0).")
    best = max(rows, key=lambda row: row["tokens_per_second"])

    def draw() -> Any:
        drawn = throughput_plot(rows, others)
        drawn.set_size_inches(4.6, 3.1)
        return drawn

    return figure(
        "throughput",
        draw,
        f"vLLM, {speed['dtype']}: at most {best['tokens_per_second']:,.0f} tokens a second, with {best['at_once']} prompts at once",
    ) + table(
        "Tokens a second",
        ["engine", "tokens a second"],
        [
            *([f"vLLM, {row['at_once']} at once", f"{row['tokens_per_second']:,.0f}"] for row in rows),
            *([name, f"{rate:,.0f}"] for name, rate in others.items()),
        ],
        right=[1],
    )


def _files(run: RunInfo) -> str:
    found = artefacts(run)
    rows = [
        [row["path"], row["stage"], "missing" if row["bytes"] is None else size_text(row["bytes"])]
        for row in artefacts(run)
    ]
    missing = [row[0] for row in rows if row[2] == "missing"]
    out = table("What the stages made", ["file or folder", "stage", "size"], rows, right=[2], code=[0])
    if missing:
        out = problem(f"Listed in manifest.json and no longer there: {', '.join(missing)}.") + out
    return out + paragraph(f"{size_text(sum(row['bytes'] or 0 for row in found))} in all.")


def _times(run: RunInfo) -> str:
    stages = run.manifest["stages"]
    total = sum(entry.get("seconds", 0) for entry in stages.values())
    rows = [
        [
            stage,
            clock(entry["seconds"]),
            f"{entry['seconds'] / total:.0%}" if total else "–",
            ", ".join(f"{kind} {clock(spent)}" for kind, spent in work_seconds(entry).items()),
        ]
        for stage, entry in stages.items()
        if "seconds" in entry
    ]
    return table(
        "Time of each stage, minutes:seconds, the start of the notebook not counted",
        ["stage", "time", "share", "of it"],
        rows,
        right=[1, 2],
    ) + paragraph(f"{clock(total)} in all.")


def _versions(run: RunInfo) -> str:
    return table(
        "Packages that decide the numbers, as they were",
        ["package", "version"],
        list(run.manifest.get("packages", {}).items()),
        code=[0, 1],
    )


# id, heading, the stage it needs, its parts
SECTIONS: tuple[tuple[str, str, str, tuple[Callable[[RunInfo], str], ...]], ...] = (
    ("settings", "Settings", "", (_settings,)),
    ("data", "Data", "split", (_data,)),
    ("curves", "Training curves", "train", (_loss, _validation, _looks)),
    ("scores", "Scores", "", (_scores, _task)),
    ("categories", "Scores by category", "evaluate", (_paired, _by_category)),
    ("samples", "Samples to read", "evaluate", (_samples,)),
    ("flips", "Flips", "evaluate", (_flips,)),
    ("parity-merge", "Is the merged model the trained one?", "merge", (_merge_parity,)),
    ("parity-vllm", "Does vLLM answer like the merged model?", "vllm", (_vllm_parity,)),
    ("throughput", "Throughput", "train", (_training_speed, _vllm_speed)),
    ("files", "Files", "", (_files,)),
    ("times", "Where the time went", "", (_times,)),
    ("versions", "Versions", "", (_versions,)),
)
