"""The result files of a run: read, checked for their form, and named when they are missing or damaged.

    rows = METRICS.read(run.path)     # or a RunError: "train/metrics.jsonl, line 3, is damaged: …"
    results = Results(run)            # all of them: results.metrics, results.problems, results.scores

`course show`, `course report` and sweeps read through here, so none of them passes over a damaged file.
"""

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from helpers.errors import RunError
from helpers.evaluate.score import Headline, Score
from helpers.runs.info import RunInfo
from helpers.runs.result_forms import (
    Checkpoint,
    Counts,
    Evaluation,
    Flip,
    MergeParity,
    Parity,
    Sample,
    Speed,
    Step,
)
from helpers.runs.stages import STAGES

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
    except (ValueError, RecursionError):
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
        headlines: how the models did on the test set, by the model's name, of stages that are done.
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
        self.headlines = self._headlines()

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

    @property
    def scores(self) -> dict[str, Score]:
        """The rates of right answers, by the model's name."""
        return {model: headline.score for model, headline in self.headlines.items()}

    def _headlines(self) -> dict[str, Headline]:
        found = {}
        stages = self._run.manifest.stages
        if self.evaluation and stages.is_done("evaluate"):
            own = self.evaluation.headlines
            found = {"base model": own["base"], "tuned model, sampler": own["tuned"]}
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
                found[model] = self._run.task.headline_of(
                    counts.score, entry.results and entry.results.mean_f1
                )
        return found
