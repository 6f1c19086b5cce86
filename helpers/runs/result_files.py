"""The result files of a run: read, checked for their form, and named when they are missing or damaged.

    rows = METRICS.read(run.path)     # or a RunError: "train/metrics.jsonl, line 3, is damaged: …"
    results = Results(run)            # all of them: results.metrics, results.problems, results.scores

`course show`, `course report` and sweeps read through here, so none of them passes over a damaged file.
Fields that nobody reads are not listed.
"""

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator
from typing_extensions import TypedDict  # pydantic asks for it before Python 3.12

from helpers.errors import RunError
from helpers.evaluate.score import Score
from helpers.evaluate.paired import measures_text
from helpers.evaluate.tasks import Task
from helpers.runs.info import RunInfo
from helpers.runs.stages import STAGES

Count = Annotated[int, Field(ge=0)]
Total = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


# What is in them


class Counts(BaseModel):
    """Right ones of all."""

    correct: Count
    total: Total

    @model_validator(mode="after")
    def _no_more_right_than_asked(self) -> Self:
        if self.correct > self.total:
            raise ValueError(f"{self.correct} right of {self.total}")
        return self

    @property
    def score(self) -> Score:
        return Score(self.correct, self.total)


class Step(BaseModel):
    """An optimizer step."""

    step: int
    train_nll: float  # nats per target token
    tokens_per_second: float


class Checkpoint(Counts):
    """A checkpoint as it was scored on the validation part."""

    step: int
    loss: float  # nats per target token


class Right(TypedDict):
    correct: Count
    total: Count


class Measures(TypedDict, total=False):
    """What a task measures beside the rate of right answers; which of these, depends on the task."""

    macro_f1: Share
    majority_baseline: Share
    by_label: dict[str, Right]
    confusion: dict[str, dict[str, Count]]
    field_precision: Share
    field_recall: Share
    field_f1: Share
    mean_f1: Share


class BaseAndTuned(BaseModel):
    base: Measures
    tuned: Measures


class Evaluation(BaseModel):
    """Base and tuned model on the test set."""

    base_correct: Count
    test_correct: Count
    test_size: Total
    base_by_category: dict[str, Counts]
    by_category: dict[str, Counts]
    base_by_template: dict[str, Counts]
    by_template: dict[str, Counts]
    task: Task
    measures: BaseAndTuned
    gained: Count
    lost: Count
    p_value: Share

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.test_size < max(self.base_correct, self.test_correct):
            raise ValueError(f"more are right than the {self.test_size} of the test set")
        try:
            _ = self.measured
        except KeyError as error:
            raise ValueError(f"measures name no {error}") from error
        return self

    @property
    def base(self) -> Score:
        return Score(self.base_correct, self.test_size)

    @property
    def tuned(self) -> Score:
        return Score(self.test_correct, self.test_size)

    @property
    def measured(self) -> list[str]:
        """The measures of the task, in lines of text; none for math."""
        return measures_text(self.task, dict(self.measures.base), dict(self.measures.tuned)).splitlines()

    @property
    def base_and_tuned(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The two results in the form that `evaluate_model` gives, as far as figures need it."""

        def result(score: Score, categories: dict[str, Counts]) -> dict[str, Any]:
            return score.fields() | {
                "by_category": {name: counts.score.fields() for name, counts in categories.items()}
            }

        return result(self.base, self.base_by_category), result(self.tuned, self.by_category)


class Sample(BaseModel):
    """A test problem with a model's answer, and whether it is right."""

    index: int
    problem: str
    output: str
    expected: str
    score: bool


class Flip(BaseModel):
    """A test problem that only one model got right: the tuned one (`gained`), or the base model (`lost`)."""

    flip: Literal["gained", "lost"]
    problem: str
    expected: str
    base: str
    tuned: str


class Parity(BaseModel):
    """Log-probabilities of the same tokens by two models, in nats."""

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


class MergeParity(Parity):
    """The merged model beside the trained one; the adapter too, and the base model, which must fail."""

    peft: Parity | None = None
    negative_control: Parity | None = None


class Rate(BaseModel):
    at_once: int
    tokens_per_second: float


class Speed(BaseModel):
    """Tokens a second of vLLM, and of other engines by name."""

    throughput: list[Rate]
    others: dict[str, float]
    dtype: str


# Reading them

F = TypeVar("F", bound=BaseModel)
R = TypeVar("R")


@dataclass(frozen=True)
class ResultFile(ABC, Generic[R]):
    """A file of a run.

    Attributes:
        path: in the run folder.
        form: of its content, or of each of its lines.
        grows: it is written line by line while its stage is under way.
        may_be_empty: no line at all is a result too.
    """

    path: str
    form: type[BaseModel]
    grows: bool = False
    may_be_empty: bool = False

    @property
    def stage(self) -> str:
        return self.path.split("/")[0]

    @abstractmethod
    def read(self, run: Path) -> R:
        """Its content.

        Args:
            run: the run's folder.

        Raises:
            RunError: it is missing or damaged; names it, with the line and field where that is known, and
                what makes it again.
        """

    def _text(self, run: Path) -> str:
        try:
            return (run / self.path).read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise self._error(run, "is missing") from error
        except OSError as error:
            raise self._error(run, f"can't be read: {error.strerror}") from error
        except ValueError as error:
            raise self._error(run, f"can't be read: {error}") from error

    def _checked(self, run: Path, text: str, line: int | None = None) -> Any:
        where = f", line {line}," if line else ""
        try:
            return self.form.model_validate(json.loads(text))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = " → ".join(map(str, first["loc"]))
            words = f"{field}: {first['msg']}" if field else first["msg"]
            raise self._error(run, f"is damaged: {words}", where) from error
        except (ValueError, RecursionError) as error:
            raise self._error(run, f"is damaged: {error}", where) from error

    def _error(self, run: Path, words: str, where: str = "") -> RunError:
        notebook = f"notebooks/{STAGES[self.stage].notebook}.ipynb"
        again = f"make it again: {notebook}, or `course run --from {self.stage} --name {run.name}`"
        return RunError(f"{self.path}{where} {words}", again)


class JsonFile(ResultFile[F]):
    """One object."""

    def read(self, run: Path) -> F:
        return self._checked(run, self._text(run))


class JsonLines(ResultFile[list[F]]):
    """An object a line."""

    def read(self, run: Path) -> list[F]:
        lines = self._text(run).split("\n")
        if self.grows and not _is_json(lines[-1]):  # a last line that a crash has cut counts as not written
            lines.pop()
        rows = [self._checked(run, line, number) for number, line in enumerate(lines, 1) if line.strip()]
        if not rows and not self.may_be_empty:
            raise self._error(run, "is empty")
        return rows


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


METRICS: JsonLines[Step] = JsonLines("train/metrics.jsonl", Step, grows=True)
CHECKPOINTS: JsonLines[Checkpoint] = JsonLines("train/checkpoints.jsonl", Checkpoint, grows=True)
BEST: JsonFile[Checkpoint] = JsonFile("train/best_checkpoint.json", Checkpoint)
EVALUATION: JsonFile[Evaluation] = JsonFile("evaluate/model_evaluation.json", Evaluation)
SAMPLES: JsonLines[Sample] = JsonLines("evaluate/samples.jsonl", Sample)
BASE_SAMPLES: JsonLines[Sample] = JsonLines("evaluate/base_samples.jsonl", Sample)
FLIPS: JsonLines[Flip] = JsonLines("evaluate/flips.jsonl", Flip, may_be_empty=True)
MERGE_PARITY: JsonFile[MergeParity] = JsonFile("merge/parity.json", MergeParity)
VLLM_PARITY: JsonFile[Parity] = JsonFile("vllm/parity.json", Parity)
VLLM_SPEED: JsonFile[Speed] = JsonFile("vllm/evaluation.json", Speed)


class Results:
    """All result files of a run. One whose stage has not made it, or that can't be used, is None.

    Attributes:
        scores: right answers on the test set by the model's name, of stages that are done.
        problems: what is wrong, and what to do, by the path of the file.
    """

    def __init__(self, run: RunInfo):
        self._run = run
        self.problems: dict[str, str] = {}
        self.metrics = self._read(METRICS)
        self.checkpoints = self._read(CHECKPOINTS)
        self.best = self._read(BEST)
        self.evaluation = self._read(EVALUATION)
        self.samples = self._read(SAMPLES)
        self.base_samples = self._read(BASE_SAMPLES)
        self.flips = self._read(FLIPS)
        self.merge_parity = self._read(MERGE_PARITY)
        self.vllm_parity = self._read(VLLM_PARITY)
        self.vllm_speed = self._read(VLLM_SPEED)
        self.scores = self._scores()

    def has(self, stage: str) -> bool:
        """Whether a stage has files to show: it is done or stale, or is training, which writes as it goes."""
        status = self._run.statuses.get(stage)
        return status in ("done", "stale") or (status == "started" and stage == "train")

    def _read(self, file: ResultFile[R]) -> R | None:
        finished = self._run.statuses.get(file.stage) in ("done", "stale")
        if not finished and not (file.grows and self.has(file.stage)):
            return None
        try:
            return file.read(self._run.path)
        except RunError as error:
            self.problems[file.path] = f"{error.what}: {error.fix}"
            return None

    def _scores(self) -> dict[str, Score]:
        found = {}
        stages = self._run.manifest.stages
        if self.evaluation and stages.is_done("evaluate"):
            found = {"base model": self.evaluation.base, "tuned model, sampler": self.evaluation.tuned}
        for stage, model in (("merge", "merged model, transformers"), ("vllm", "merged model, vLLM")):
            entry = stages.get(stage)
            if not entry or entry.status != "done":
                continue
            try:
                counts = Counts.model_validate(entry.results, from_attributes=True)
            except ValidationError:
                again = f"`course run --from {stage} --name {self._run.name}` makes it again"
                words = f"manifest.json has no usable score of the {model}: {again}"
                self.problems[f"manifest.json, {stage}"] = words
            else:
                found[model] = counts.score
        return found
