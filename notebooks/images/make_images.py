"""The picture in README.md, and the tables of numbers in README.md and docs/measured.md, made from a run.

    python notebooks/images/make_images.py           # from runs/latest
    python notebooks/images/make_images.py NAME      # from runs/NAME

It writes base_and_tuned.png next to this file, and replaces the table between the `<!-- numbers -->` marks of
both pages. README.md gets the main rows, docs/measured.md all of them. Nothing in these tables is typed by
hand, so they can't drift from the run that they name.
"""

import sys
from pathlib import Path
from statistics import median
from typing import Any

from helpers.errors import CourseError, RunError
from helpers.evaluate.score import Score
from helpers.files import write_text
from helpers.paths import ROOT
from helpers.plots import prompts_and_training
from helpers.runs import open_run
from helpers.runs.result_files import BEST, CHECKPOINTS, EVALUATION, METRICS
from helpers.runs.result_forms import Evaluation
from helpers.runs.run import Run
from helpers.runs.stages import STAGES
from helpers.text import clock, percent

PICTURE = Path(__file__).with_name("base_and_tuned.png")
START, END = "<!-- numbers -->", "<!-- end of numbers -->"
README, ALL = ROOT / "README.md", ROOT / "docs" / "measured.md"
IN_README = (
    "problems",
    "base model, best of three prompts, test set",
    "tuned model, test set",
    "merged model in `transformers`",
    "merged model in vLLM",
    "time per notebook",
)


def save_picture(evaluation: Evaluation, path: Path) -> None:
    """The base model asked in three ways, and the tuned model, as notebook 03 draws them."""
    drawn = prompts_and_training(evaluation.base_promptings, evaluation.tuned)
    drawn.savefig(path, dpi=110, metadata={"Software": None})


def _score(score: Score) -> str:
    return f"{score.correct} of {score.total} = {percent(score.accuracy)}"


def _with_interval(score: Score) -> str:
    return f"{_score(score)} (95% interval {' to '.join(map(percent, score.ci95))})"


def numbers(run: Run) -> list[tuple[str, str]]:
    """What was measured, as rows of text.

    Raises:
        RunError: a stage of the run is not done.
    """
    stages = {name: run.stage(name) for name in STAGES}
    return [*_scores(run, stages), *_parity(stages), *_training(run, stages), *_times(run, stages)]


def _scores(run: Run, stages: dict[str, Any]) -> list[tuple[str, str]]:
    evaluation = EVALUATION.read(run.path)
    sizes = stages["split"].results.sizes
    merged = {name: stages[name].results for name in ("merge", "vllm")}
    by_template = evaluation.by_template
    return [
        (
            "problems",
            f"{sizes['train']} to train, {sizes['validation']} to choose a checkpoint, "
            f"{sizes['test']} to test",
        ),
        ("base model, best of three prompts, test set", _with_interval(evaluation.base)),
        *((f"… {row.name}", row.told(evaluation.task)) for row in evaluation.base_promptings),
        ("tuned model, test set", _with_interval(evaluation.tuned)),
        *(
            (f"… {kind} templates", _score(by_template[kind].score))
            for kind in ("seen", "unseen")
            if kind in by_template
        ),
        ("merged model in `transformers`", _score(Score(merged["merge"].correct, merged["merge"].total))),
        ("merged model in vLLM", _score(Score(merged["vllm"].correct, merged["vllm"].total))),
    ]


def _parity(stages: dict[str, Any]) -> list[tuple[str, str]]:
    names = {
        "merge": "largest logprob difference, merged to trained model",
        "vllm": "… vLLM to merged model in `transformers`",
    }
    rows = []
    for stage, name in names.items():
        difference = stages[stage].results.max_abs_logprob_diff
        rows.append((name, f"{difference:.0e} nats, {stages[stage].settings.dtype}"))
    return rows


def _training(run: Run, stages: dict[str, Any]) -> list[tuple[str, str]]:
    train = stages["train"].results
    first = CHECKPOINTS.read(run.path)[0]
    best = BEST.read(run.path)
    return [
        (
            "training loss",
            f"{train.first_nll:.3f} in the first batch, {train.last_nll:.3f} in the last of "
            f"{train.steps}, nats per answer token",
        ),
        (
            "validation",
            f"{_score(first.score)} before, {_score(best.score)} at step {best.step}, which was chosen",
        ),
    ]


def _times(run: Run, stages: dict[str, Any]) -> list[tuple[str, str]]:
    rate = median(row.tokens_per_second for row in METRICS.read(run.path))
    vllm_rate = stages["vllm"].results.tokens_per_second
    seconds = {name: stage.seconds for name, stage in stages.items()}
    each = ", ".join(f"{STAGES[name].notebook[:2]} {clock(spent)}" for name, spent in seconds.items())
    work: dict[str, float] = {}
    for stage in stages.values():
        for kind, spent in stage.work_seconds.items():
            work[kind] = work.get(kind, 0.0) + spent
    return [
        ("speed", f"training {rate:.0f} tokens/s; vLLM {vllm_rate:.0f} tokens/s in its fastest test"),
        ("time per notebook", f"{each}; {clock(sum(seconds.values()))} in all, without the start of each"),
        ("spent on", ", ".join(f"{kind} {clock(spent)}" for kind, spent in work.items())),
    ]


def heading(run: Run) -> str:
    """Which run it was, with the settings that differ from the notebooks' defaults, if any."""
    entries = [run.stage(stage) for stage in STAGES]
    changed = {f"-p {name}={value}" for entry in entries for name, value in entry.settings.changed.items()}
    packages = run.manifest.packages
    command = " ".join(["course run", *sorted(changed)])
    return (
        f"From the run `{run.name}` of {run.manifest.created:%Y-%m-%d}, with the settings of `{command}`, "
        f"with tinker {packages['tinker']}, torch {packages['torch']} "
        f"and transformers {packages['transformers']}:"
    )


def table(run: Run, names: tuple[str, ...] = ()) -> str:
    """The rows as a Markdown table under its heading; only those of these names, if any are given."""
    rows = [row for row in numbers(run) if not names or row[0] in names]
    lines = [heading(run), "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join(lines)


def replace_table(page: Path, rows: str) -> None:
    """Put the table between the marks of a page.

    Raises:
        RunError: the page has no marks.
    """
    text = page.read_text(encoding="utf-8")
    if START not in text or END not in text:
        raise RunError(f"{page.name} has no {START} and {END}", "put the two marks where the table belongs")
    before, rest = text.split(START, 1)
    write_text(page, f"{before}{START}\n{rows}\n{END}{rest.split(END, 1)[1]}")


def main(arguments: list[str]) -> int:
    run = open_run(arguments[0] if arguments else "latest")
    replace_table(README, table(run, IN_README))
    replace_table(ALL, table(run))
    save_picture(EVALUATION.read(run.path), PICTURE)
    size = PICTURE.stat().st_size / 1e3
    print(f"{PICTURE.relative_to(ROOT)}: {size:.0f} kB; {README.name}, {ALL.name}: tables of run {run.name}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except CourseError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
