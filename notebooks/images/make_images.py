"""The picture and the table of numbers in README.md, made from a finished run.

    python notebooks/images/make_images.py           # from runs/latest
    python notebooks/images/make_images.py NAME      # from runs/NAME

It writes base_and_tuned.png beside this file, and replaces the table between the `<!-- numbers -->` marks of README.md.
Nothing in that table is typed by hand, so it can't drift from the run that it names.
"""

import sys
from pathlib import Path
from statistics import median
from typing import Any

from helpers.errors import CourseError, RunError
from helpers.files import read_json, read_jsonl, write_text
from helpers.paths import ROOT
from helpers.plots import accuracy_by_category
from helpers.runs.run import STAGES, Run, open_run
from helpers.runs.run_files import base_and_tuned

PICTURE = Path(__file__).with_name("base_and_tuned.png")
START, END = "<!-- numbers -->", "<!-- end of numbers -->"


def save_picture(evaluation: dict[str, Any], path: Path) -> None:
    """Base and tuned accuracy by category, as notebook 03 draws it."""
    accuracy_by_category(*base_and_tuned(evaluation)).savefig(path, dpi=110, metadata={"Software": None})


def _score(row: dict[str, Any]) -> str:
    return f"{row['correct']} of {row['total']} = {row['correct'] / row['total']:.1%}"


def numbers(run: Run) -> list[tuple[str, str]]:
    """What was measured and what came out, as rows of text.

    Raises:
        RunError: a stage of the run is not done.
    """
    stages = {name: run.stage(name) for name in STAGES}
    train, merge, vllm = (stages[name]["results"] for name in ("train", "merge", "vllm"))
    evaluation = read_json(run.file("evaluate/model_evaluation.json"))
    best, first = (
        read_json(run.file("train/best_checkpoint.json")),
        read_jsonl(run.file("train/checkpoints.jsonl"))[0],
    )
    metrics = read_jsonl(run.file("train/metrics.jsonl"))
    low, high = evaluation["test_accuracy_ci95"]
    base_low, base_high = evaluation["base_accuracy_ci95"]
    sizes = stages["split"]["results"]["sizes"]
    seconds = {name: stage["seconds"] for name, stage in stages.items()}
    work: dict[str, float] = {}
    for stage in stages.values():
        for kind, spent in stage["work_seconds"].items():
            work[kind] = work.get(kind, 0.0) + spent
    rate = median(row["tokens_per_second"] for row in metrics)
    templates = evaluation["by_template"]
    return [
        (
            "problems",
            f"{sizes['train']} to train on, {sizes['validation']} to choose by, {sizes['test']} to test on",
        ),
        (
            "base model, test set",
            f"{evaluation['base_correct']} of {evaluation['test_size']} = {evaluation['base_accuracy']:.1%} "
            f"(95% interval {base_low:.1%} to {base_high:.1%})",
        ),
        (
            "tuned model, test set",
            f"{evaluation['test_correct']} of {evaluation['test_size']} = {evaluation['test_accuracy']:.1%} "
            f"(95% interval {low:.1%} to {high:.1%})",
        ),
        *(
            (f"… {kind} templates", _score(templates[kind]))
            for kind in ("seen", "unseen")
            if kind in templates
        ),
        ("merged model in `transformers`", _score(merge)),
        ("merged model in vLLM", _score(vllm)),
        (
            "largest logprob difference, merged to trained model",
            f"{merge['max_abs_logprob_diff']:.0e} nats, {stages['merge']['parameters']['dtype']}",
        ),
        (
            "… vLLM to merged model in `transformers`",
            f"{vllm['max_abs_logprob_diff']:.0e} nats, {stages['vllm']['parameters']['dtype']}",
        ),
        (
            "training loss",
            f"{train['first_nll']:.3f} in the first batch, {train['last_nll']:.3f} in the last of {train['steps']}, "
            "nats an answer token",
        ),
        ("validation", f"{_score(first)} before, {_score(best)} at step {best['step']}, which was chosen"),
        (
            "speed",
            f"training {rate:.0f} tokens/s; vLLM {vllm['tokens_per_second']:.0f} tokens/s in its fastest test",
        ),
        (
            "time a notebook",
            ", ".join(f"{STAGES[name][0][:2]} {_clock(spent)}" for name, spent in seconds.items())
            + f"; {_clock(sum(seconds.values()))} in all, the start of each not counted",
        ),
        ("of it", ", ".join(f"{kind} {_clock(spent)}" for kind, spent in work.items())),
    ]


def _clock(seconds: float) -> str:
    return f"{round(seconds) // 60}:{round(seconds) % 60:02}"


def table(run: Run) -> str:
    """The rows as a Markdown table, with the settings that differ from the notebooks' defaults, if any."""
    from helpers.course.cli import notebook_parameters

    defaults = notebook_parameters()
    changed = sorted(
        {
            f"-p {name}={value}"
            for stage in STAGES
            for name, value in run.stage(stage)["parameters"].items()
            if name in defaults[stage] and value != defaults[stage][name]
        }
    )
    packages = run.manifest["packages"]
    lines = [
        f"From the run `{run.name}` of {run.manifest['created'][:10]}, with the settings of `course run {' '.join(changed)}".rstrip()
        + "`, "
        f"with tinker {packages['tinker']}, torch {packages['torch']} and transformers {packages['transformers']}:",
        "",
        "| | |",
        "|---|---|",
    ]
    return "\n".join([*lines, *(f"| {name} | {value} |" for name, value in numbers(run))])


def main(arguments: list[str]) -> int:
    run = open_run(arguments[0] if arguments else "latest")
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    if START not in text or END not in text:
        raise RunError(f"README.md has no {START} and {END}", "put the two marks where the table belongs")
    before, rest = text.split(START, 1)
    rows = table(run)
    save_picture(read_json(run.file("evaluate/model_evaluation.json")), PICTURE)
    write_text(readme, f"{before}{START}\n{rows}\n{END}{rest.split(END, 1)[1]}")
    print(
        f"{PICTURE.relative_to(ROOT)}: {PICTURE.stat().st_size / 1e3:.0f} kB; README.md: table of run {run.name}"
    )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except CourseError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
