"""What is in the files of a run: read, checked for their form, and named when they are missing or damaged.

    metrics = load(run.path, "train/metrics.jsonl")     # raises a RunError that says "train/metrics.jsonl, line 3 …"
    rows, problems = scores(look_at(run.path))          # what each model got right, and what could not be read

`course show`, `course report` and the comparison of runs read through here, so none of them passes over a damaged file.
"""

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic asks for it before Python 3.12

from helpers.errors import RunError
from helpers.files import read_jsonl
from helpers.runs.run import STAGES

if TYPE_CHECKING:
    from helpers.runs.info import RunInfo

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Interval = tuple[Share, Share]


def _no_more_right_than_asked(row: dict[str, Any]) -> dict[str, Any]:
    if row["correct"] > row["total"]:
        raise ValueError(f"{row['correct']} right of {row['total']}")
    return row


class _Score(TypedDict):
    correct: Count
    total: Annotated[int, Field(ge=1)]
    accuracy: Share
    ci95: Interval


Score = Annotated[_Score, AfterValidator(_no_more_right_than_asked)]


class Evaluation(TypedDict):
    base_accuracy: Share
    base_correct: Count
    base_accuracy_ci95: Interval
    test_accuracy: Share
    test_correct: Count
    test_size: Annotated[int, Field(ge=1)]
    test_accuracy_ci95: Interval
    base_by_category: dict[str, Score]
    by_category: dict[str, Score]


class Templates(TypedDict, total=False):
    base_by_template: dict[str, Score]
    by_template: dict[str, Score]


class Right(TypedDict):
    correct: Count
    total: Count


class Measures(TypedDict, total=False):
    macro_f1: Share
    majority_baseline: Share
    by_label: dict[str, Right]
    confusion: dict[str, dict[str, Count]]
    field_precision: Share
    field_recall: Share
    field_f1: Share
    mean_f1: Share


class BaseAndTuned(TypedDict):
    base: Measures
    tuned: Measures


class TaskMeasures(TypedDict, total=False):
    measures: BaseAndTuned


class PairedEvaluation(Evaluation, Templates, TaskMeasures):
    gained: Count
    lost: Count
    p_value: Share


class Sample(TypedDict):
    index: int
    problem: str
    output: str
    expected: str
    score: bool


class Flip(TypedDict):
    flip: str
    problem: str
    expected: str
    base: str
    tuned: str


class Step(TypedDict):
    step: int
    train_nll: float
    tokens_per_second: float


class _Look(TypedDict):
    step: int
    loss: float
    correct: Count
    total: Annotated[int, Field(ge=1)]


Look = Annotated[_Look, AfterValidator(_no_more_right_than_asked)]


class Parity(TypedDict):
    reference: str
    other: str
    max_abs_logprob_diff: float
    mean_abs_logprob_diff: float
    token_agreement: float | None
    prompts: int
    tokens: int
    tolerance: float
    mean_tolerance: float
    passed: bool


class MergeParity(Parity, total=False):
    peft: Parity
    negative_control: Parity


class Rate(TypedDict):
    at_once: int
    tokens_per_second: float


class Speed(TypedDict):
    throughput: list[Rate]
    others: dict[str, float]
    dtype: str


class Duplicates(TypedDict):
    exact_groups: int
    near_groups: int
    records: int


class TaskSettings(TypedDict, total=False):
    name: Literal["math", "classification", "extraction", "text"]
    labels: dict[str, Count]
    majority: str
    threshold: Share


class SplitResults(TypedDict, total=False):
    task: TaskSettings
    records: int
    leaks: int
    sizes: dict[str, int]
    left_out: dict[str, int]
    stratified_by: str | None
    unseen_templates: list[str]
    duplicates: Duplicates
    notes: list[str]


class DataFile(TypedDict):
    path: str
    bytes: int | None
    sha256: str | None


# Each file that pages read, and the form it must have. Fields that nobody reads are left out.
FORMS: dict[str, Any] = {
    "evaluate/model_evaluation.json": PairedEvaluation,
    "evaluate/samples.jsonl": list[Sample],
    "evaluate/base_samples.jsonl": list[Sample],
    "evaluate/flips.jsonl": list[Flip],
    "train/metrics.jsonl": list[Step],
    "train/checkpoints.jsonl": list[Look],
    "train/best_checkpoint.json": Look,
    "merge/parity.json": MergeParity,
    "vllm/parity.json": Parity,
    "vllm/evaluation.json": Speed,
    "manifest.json, results of split": SplitResults,
    "manifest.json, data files of split": list[DataFile],
}


@cache
def _form(name: str) -> TypeAdapter:
    return TypeAdapter(FORMS[name])


def load(folder: Path, name: str) -> Any:
    """A file of a run.

    Args:
        folder: of the run.
        name: a key of FORMS, which says what it gives.

    Raises:
        RunError: it is missing or damaged; names it, with the line and field where that is known.
    """
    stage = name.split("/")[0]
    fix = f"make it again: notebooks/{STAGES[stage][0]}.ipynb, or `course run --from {stage} --name {folder.name}`"
    try:
        if name.startswith("train/") and name.endswith(
            ".jsonl"
        ):  # grows line by line: one that was cut is not counted
            value = read_jsonl(folder / name)
        else:
            text = (folder / name).read_text(encoding="utf-8")
            value = (
                [json.loads(line) for line in text.split("\n") if line.strip()]
                if name.endswith(".jsonl")
                else json.loads(text)
            )
    except RunError as error:
        raise RunError(str(error).partition("\n")[0].replace(f"{folder}/", ""), fix) from error
    except FileNotFoundError as error:
        raise RunError(f"{name} is missing", fix) from error
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{name} can't be read: {getattr(error, 'strerror', None) or error}", fix) from error
    return _checked(value, name, fix)


def file_problems(run: "RunInfo") -> list[str]:
    """What is wrong with the files of stages that are done or stale, and with what the manifest says of the split."""
    reads = [
        lambda name=name: load(run.path, name)
        for name in FORMS
        if run.statuses.get(name.split("/")[0]) in ("done", "stale")
    ]
    found = []
    for read in [*reads, lambda: split_of(run)]:
        try:
            read()
        except RunError as error:
            found.append(one_line(error))
    return found


def split_of(run: "RunInfo") -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the manifest holds of notebook 01: results of the split, and the data files (`path`, `bytes`, `sha256`).

    Raises:
        RunError: an entry has another form.
    """
    entry = run.manifest["stages"].get("split", {})
    fix = f"`course run --from split --name {run.name}` makes it again"
    return (
        _checked(entry.get("results", {}), "manifest.json, results of split", fix),
        _checked(entry.get("data", []), "manifest.json, data files of split", fix),
    )


def _checked(value: Any, name: str, fix: str) -> Any:
    try:
        return _form(name).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = list(first["loc"])
        line = f", line {where.pop(0) + 1}," if name.endswith(".jsonl") and where else ""
        field = " → ".join(map(str, where))
        raise RunError(
            f"{name}{line} is damaged: {field + ': ' if field else ''}{first['msg']}", fix
        ) from error


def one_line(error: RunError) -> str:
    """What is wrong and what to do, for a list."""
    return str(error).replace("\n→", ":")


def base_and_tuned(evaluation: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The two results in model_evaluation.json, each in the form that `evaluate_model` gives."""
    base = {
        "correct": evaluation["base_correct"],
        "total": evaluation["test_size"],
        "accuracy": evaluation["base_accuracy"],
        "ci95": evaluation["base_accuracy_ci95"],
        "by_category": evaluation["base_by_category"],
    }
    tuned = {
        "correct": evaluation["test_correct"],
        "total": evaluation["test_size"],
        "accuracy": evaluation["test_accuracy"],
        "ci95": evaluation["test_accuracy_ci95"],
        "by_category": evaluation["by_category"],
    }
    return base, tuned


def scores(run: "RunInfo") -> tuple[list[dict[str, Any]], list[str]]:
    """Right answers of each model that the run scored, with 95% intervals.

    Returns:
        A row a model (`model`, `correct`, `total`, `accuracy`, `ci95`), of stages that are done, and what is wrong with the rest.
    """
    from helpers.evaluate.score import wilson_interval

    found: list[tuple[str, Any, Any]] = []
    problems = []
    if run.statuses.get("evaluate") == "done":
        try:
            base, tuned = base_and_tuned(load(run.path, "evaluate/model_evaluation.json"))
            found += [
                ("base model", base["correct"], base["total"]),
                ("tuned model, sampler", tuned["correct"], tuned["total"]),
            ]
        except RunError as error:
            problems.append(one_line(error))
    for stage, name in (("merge", "merged model, transformers"), ("vllm", "merged model, vLLM")):
        if run.statuses.get(stage) == "done":
            results = run.manifest["stages"][stage].get("results", {})
            found.append((name, results.get("correct"), results.get("total")))
    rows = []
    for name, correct, total in found:
        if (
            not isinstance(correct, int)
            or not isinstance(total, int)
            or not 0 <= correct <= total
            or total < 1
        ):
            problems.append(f"manifest.json has no usable score of the {name}")
            continue
        rows.append(
            {
                "model": name,
                "correct": correct,
                "total": total,
                "accuracy": correct / total,
                "ci95": list(wilson_interval(correct, total)),
            }
        )
    return rows, problems
