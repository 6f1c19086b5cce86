"""`manifest.json`: what a run did, with what. These models are its only writer and its only reader.

A field that is not listed here is an error that names it, and so is a manifest of another format.
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from helpers.data.records import Source
from helpers.data.rows import SKIPPED_FILE
from helpers.errors import RunError
from helpers.evaluate.controls import Controls
from helpers.evaluate.promptings import Prompting
from helpers.evaluate.tasks import Task
from helpers.files import write_text
from helpers.runs.settings import (
    EvaluateSettings,
    ExportSettings,
    MergeSettings,
    Settings,
    SplitSettings,
    TrainSettings,
    VllmSettings,
)
from helpers.runs.stages import STAGES, built_on
from helpers.text import plural

FORMAT = (
    3  # raise it when a manifest of today could not be read by the code of yesterday, or the other way round
)

Share = Annotated[float, Field(ge=0, le=1)]
Status = Literal["started", "done", "stale"]


def now() -> datetime:
    """The time in UTC, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class DataFile(Part):
    """A data file as a run read it; size and hash are None where it could not be read."""

    path: str
    bytes: int | None = None
    sha256: str | None = None
    revision: str | None = None  # of a data set on the hub


class Duplicates(Part):
    exact_groups: int
    near_groups: int
    records: int


class SplitResults(Part):
    task: Task
    sources: list[Source]  # how each file was read
    leaks: int  # groups of repeats that reach across parts
    records: int
    sizes: dict[str, int]
    seed: int
    stratified_by: str | None
    unseen_templates: list[str]
    duplicates: Duplicates
    left_out: dict[str, int]
    notes: list[str]

    @property
    def remarks(self) -> list[str]:
        """What to know of the data: columns and rows that were left out, and the notes."""
        unused = [
            f"{source.name}: not used: {', '.join(source.unused)}" for source in self.sources if source.unused
        ]
        skipped = [
            f"{source.name}: {plural(source.skipped, 'row')} left out: see split/{SKIPPED_FILE}"
            for source in self.sources
            if source.skipped
        ]
        return unused + skipped + self.notes


class TrainResults(Part):
    first_nll: float  # nats per target token
    last_nll: float
    steps: int
    tokens_an_epoch: int
    best_step: int


class BaseAsked(Part):
    """All that decides what the base model answers, so that another run can take the answers over."""

    base_model: str
    backend: str
    test_set: str  # SHA-256
    examples: str  # SHA-256 of the training examples that one of the ways of asking shows
    prompt_format: str
    max_tokens: int
    temperature: float
    seed: int | None


class EvaluateResults(Part):
    base_accuracy: Share  # of the strongest way of asking; the rate's name is that of the task's measure
    base_mean_f1: Share | None  # of free text only
    base_prompting: str  # the strongest way of asking
    base_promptings: list[Prompting]
    test_accuracy: Share
    test_mean_f1: Share | None
    controls: Controls
    p_value: Share
    base_asked: BaseAsked
    base_from: str | None  # the run whose answers of the base model were taken over


class FileMade(Part):
    bytes: int
    sha256: str


class Archive(Part):
    checkpoint: str  # asked for
    source: str  # exported: the training checkpoint of the same name, if the one asked for was a sampler's
    archive: str  # file name
    bytes: int
    sha256: str
    files: dict[str, FileMade]


class ExportResults(Part):
    checkpoint: str
    archive: Archive
    rank: int
    alpha: float
    parameters: int


class MergeResults(Part):
    correct: int
    total: int
    accuracy: float
    mean_f1: Share | None = None  # of free text only
    parity_passed: bool
    max_abs_logprob_diff: float  # nats


class VllmResults(Part):
    correct: int
    total: int
    accuracy: float
    mean_f1: Share | None = None
    parity_passed: bool
    max_abs_logprob_diff: float  # nats
    tokens_per_second: float


class Failure(Part):
    """Why the last try of a stage ended early: the error's own fields."""

    stage: str
    kind: str  # the exception's class
    what: str
    fix: str = ""
    time: AwareDatetime


class LessonEntry(Part):
    """What the manifest says of a notebook of Part 2 or 3 that `course run --part` ran."""

    status: Status
    started: AwareDatetime
    settings: dict[str, Any]  # what the notebook was told, by name
    seconds: float | None = None
    failure: Failure | None = None


S = TypeVar("S", bound=Settings)
R = TypeVar("R", bound=Part)


class StageEntry(Part, Generic[S, R]):
    """What the manifest says of one stage. `results` is there once the stage is done."""

    status: Status
    started: AwareDatetime
    settings: S
    data: list[DataFile] = []  # of 01_split
    finished: AwareDatetime | None = None
    seconds: float | None = None
    work_seconds: dict[str, float] = {}  # by kind: training, sampling, merging, vllm
    summary: str = ""
    artefacts: list[str] = []  # paths in the run folder, the one a reader wants first at the head
    results: R | None = None
    shared_from: str | None = None  # the run that a sweep copied this stage from


class Stages(Part):
    """The stages that were begun."""

    split: StageEntry[SplitSettings, SplitResults] | None = None
    train: StageEntry[TrainSettings, TrainResults] | None = None
    evaluate: StageEntry[EvaluateSettings, EvaluateResults] | None = None
    export: StageEntry[ExportSettings, ExportResults] | None = None
    merge: StageEntry[MergeSettings, MergeResults] | None = None
    vllm: StageEntry[VllmSettings, VllmResults] | None = None

    def get(self, name: str) -> StageEntry[Any, Any] | None:
        return getattr(self, name)

    def begin(self, name: str, settings: Settings, data: list[DataFile]) -> None:
        """Begin a stage anew. Those that were built on it and are done become `stale`."""
        for later in built_on(name):
            entry = self.get(later)
            if entry and entry.status == "done":
                entry.status = "stale"
        kind = get_args(type(self).model_fields[name].annotation)[0]
        setattr(self, name, kind(status="started", started=now(), settings=settings, data=data))

    def finish(self, name: str, **values: Any) -> None:
        """Mark a stage done, with the other fields of its entry.

        Raises:
            ValidationError: `results` are not those of the stage.
        """
        entry = getattr(self, name)
        done = {**dict(entry), **values, "status": "done", "finished": now()}
        setattr(self, name, type(entry).model_validate(done))

    def items(self) -> Iterator[tuple[str, StageEntry[Any, Any]]]:
        """Name and entry of each stage that was begun, in order."""
        for name in STAGES:
            if entry := self.get(name):
                yield name, entry

    def is_done(self, name: str) -> bool:
        entry = self.get(name)
        return entry is not None and entry.status == "done"


class BackendUsed(Part):
    kind: Literal["stub", "hosted", "url"]
    url: str | None

    @property
    def name(self) -> str:
        """What `connect` takes for it."""
        return self.url if self.kind == "url" and self.url else self.kind


class Manifest(Part):
    """All of it. Times are in UTC."""

    format: Literal[3] = FORMAT
    name: str
    created: AwareDatetime
    packages: dict[str, str]
    settings: dict[str, Any] = {}  # what the user chose for `course run`, by name; stages hold what they used
    seed: int | None = None
    base_model: str | None = None
    backend: BackendUsed | None = None
    like: str | None = None  # the run whose settings were taken over
    sweep: str | None = None  # the sweep that the run belongs to
    failure: Failure | None = None  # until a stage is begun again
    stages: Stages = Stages()
    lessons: dict[str, LessonEntry] = {}  # by notebook

    @property
    def task(self) -> Task:
        """What makes an answer right, and so what its scores are called; that of math before the split."""
        split = self.stages.split
        return split.results.task if split and split.results else Task()

    @property
    def evaluated(self) -> EvaluateResults | None:
        """What notebook 03 found; None if it is not done, or stale."""
        evaluate = self.stages.evaluate
        return evaluate.results if evaluate and evaluate.status == "done" else None

    @property
    def flag(self) -> str:
        """A warning if the scores say little about being right; else empty."""
        return self.evaluated.controls.flag(self.task) if self.evaluated else ""

    def lesson_is_done(self, lesson: str) -> bool:
        entry = self.lessons.get(lesson)
        return entry is not None and entry.status == "done" and entry.failure is None

    @property
    def failures(self) -> list[Failure]:
        """Those of the last tries: one of the stages at most, and one of each lesson."""
        found = [self.failure, *(entry.failure for entry in self.lessons.values())]
        return [failure for failure in found if failure]

    def failure_of(self, name: str) -> Failure | None:
        """Why the last try of this stage or lesson failed."""
        return next((failure for failure in self.failures if failure.stage == name), None)

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """Read a manifest.

        Raises:
            RunError: it is missing, damaged, or of another version of the course.
        """
        again = f"`course clean {path.parent.name}` deletes the run; `course run` makes another"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise RunError("manifest.json is missing", again) from error
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"manifest.json can't be read: {error}", again) from error
        if isinstance(found, dict) and found.get("format") != FORMAT:
            made_by = "an earlier" if "format" not in found or found["format"] in range(FORMAT) else "another"
            raise RunError(f"the run was made by {made_by} version of the course", again)
        try:
            return cls.model_validate(found)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "the whole file"
            raise RunError(f"manifest.json is damaged: {where}: {first['msg']}", again) from error

    def write(self, path: Path) -> None:
        """Replace the file in one step.

        Raises:
            RunError: the folder can't be written.
        """
        write_text(path, self.model_dump_json(indent=2, exclude_defaults=False) + "\n")
