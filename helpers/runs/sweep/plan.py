"""What a sweep is to run: made from settings, checked, kept in its folder."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator

from helpers.errors import CourseError, RunError
from helpers.files import private_folder, read_json, write_text
from helpers.paths import runs_dir
from helpers.runs.base_answers import check_base_run
from helpers.runs.chosen import checked
from helpers.runs.hosted import settled
from helpers.runs.info import readable_run
from helpers.runs.lessons import check_lesson, defaults_of_lesson, saves_scores
from helpers.runs.manifest import Failure, Manifest, now
from helpers.runs.preflight import check_run
from helpers.runs.run import SWEEP_FILE, Run, check_new_run, open_run
from helpers.runs.settings import OTHER_RUNS, defaults_of, settings_until
from helpers.runs.stages import STAGES, lessons_by_number, stages_until
from helpers.train.backend import choose_backend, served_models


@dataclass(frozen=True)
class Sweep:
    """Settings to run, a run each.

    Attributes:
        folder: the sweep's own, in the runs folder; its name is the sweep's.
        until: the last stage of each run.
        swept: names of the settings that differ, in the user's order.
        settings: what each run gets, by its name: `{"ranks-01": {"rank": 8, "epochs": 1}, …}`.
        lesson: the notebook of Part 2 or 3 that gets the settings, if it isn't the stages.
        like: the run that is copied up to `until`, for the lesson to stand on.
        notes: what to say about the settings: a sentence each.
    """

    folder: Path
    until: str
    swept: tuple[str, ...]
    settings: dict[str, dict[str, Any]]
    lesson: str = ""
    like: str = ""
    notes: list[str] = field(default_factory=list, compare=False)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def stages(self) -> list[str]:
        return stages_until(self.until)

    @property
    def what(self) -> str:
        """What each run does: `until evaluate`."""
        return f"of {self.lesson}, each on a copy of {self.like}" if self.lesson else f"until {self.until}"

    def run(self, name: str) -> Run:
        return Run(self.folder.parent / name)

    def original(self) -> Run:
        """The run that a lesson's runs are copies of: one of them, if there is any by now. So they are alike,
        whatever has become of `like`.

        Raises:
            RunError: there is neither.
        """
        for run in map(self.run, self.settings):
            with contextlib.suppress(RunError):  # not made yet; or damaged, which `run_sweep` says
                if run.manifest.sweep:
                    return run
        return open_run(self.like)

    def setting(self, name: str) -> dict[str, Any]:
        """The swept settings of a run, with today's default where it sets none."""
        own = self.settings[name]
        return {key: own[key] if key in own else self._default(key) for key in self.swept}

    def _default(self, key: str) -> Any:
        if self.lesson:
            return defaults_of_lesson(self.lesson).get(key)
        return next(iter(defaults_of(key).values()), None)

    def text(self, name: str) -> str:
        """The same to read: `rank=8 learning_rate=0.001`."""
        return " ".join(f"{key}={value}" for key, value in self.setting(name).items())

    def stage_settings(self, name: str, until: str = "") -> dict[str, Any]:
        """All settings of a run's stages, by stage; where a lesson gets the settings, those of the lesson."""
        if self.lesson:
            return {self.lesson: defaults_of_lesson(self.lesson) | self.settings[name]}
        return settings_until(until or self.until, self.settings[name])

    def is_done(self, name: str, until: str = "") -> bool:
        """Whether a run has all stages up to one, or all of the sweep, and none of them failed since."""
        manifest, stages = self.run(name).manifest, stages_until(until or self.until)
        if self.lesson:
            return manifest.lesson_is_done(self.lesson)
        failed = manifest.failure is not None and manifest.failure.stage in stages
        return not failed and all(manifest.stages.is_done(stage) for stage in stages)

    def failure(self, manifest: Manifest) -> Failure | None:
        """Why what the sweep does in a run failed at its last try."""
        return manifest.failure_of(self.lesson) if self.lesson else manifest.failure

    def save(self) -> None:
        """Write it into its folder, once.

        Raises:
            RunError: the folder can't be written.
        """
        path = self.folder / SWEEP_FILE
        if not path.is_file():
            private_folder(self.folder)
            plan = _Plan(
                name=self.name,
                created=now(),
                until=self.until,
                swept=list(self.swept),
                runs=self.settings,
                lesson=self.lesson,
                like=self.like,
            )
            write_text(path, plan.model_dump_json(indent=2) + "\n")


class _Plan(BaseModel):
    """sweep.json."""

    model_config = ConfigDict(extra="forbid")

    name: str
    created: AwareDatetime
    until: str
    swept: list[str]
    runs: dict[str, dict[str, Any]] = Field(min_length=1)
    lesson: str = ""
    like: str = ""

    @field_validator("until")
    @classmethod
    def _a_stage(cls, name: str) -> str:
        if name not in STAGES:
            raise ValueError("no such stage")
        return name

    @field_validator("lesson")
    @classmethod
    def _a_lesson(cls, name: str) -> str:
        if name and name not in lessons_by_number().values():
            raise ValueError("no such notebook")
        return name


def plan_sweep(
    name: str,
    settings: list[dict[str, Any]],
    common: dict[str, Any] | None = None,
    until: str = "evaluate",
    new: bool = True,
    lesson: str = "",
    like: str = "latest",
) -> Sweep:
    """A sweep that is checked, but not begun. Makes nothing.

    Args:
        name: of the sweep; its runs are called NAME-01, NAME-02, …
        settings: by name, one dictionary a run, from `grid`, `read_settings` or by hand.
        common: what all runs get; a run's own settings beat it.
        until: the last stage.
        new: False if a sweep of this name may exist, to be compared with; `like` is then as there.
        lesson: a notebook of Part 2 or 3 to run instead of the stages, such as `11_preferences`.
        like: the run that a lesson stands on; each run is a copy of it, up to its trained model.

    Raises:
        CourseError: an unknown setting, a value that is not allowed, the same settings twice, a name that is
            taken, or no run to stand on whose training is done.
    """
    names = [f"{name}-{number:0{max(2, len(str(len(settings))))}}" for number in range(1, len(settings) + 1)]
    swept = tuple(dict.fromkeys(key for setting in settings for key in setting))
    own = {run: (common or {}) | setting for run, setting in zip(names, settings, strict=True)}
    if not own:
        raise CourseError("a sweep needs settings", "give --grid or --settings")
    if lesson:
        sweep = Sweep(runs_dir() / name, "train", swept, own, lesson, standing(lesson, like) if new else like)
        _check_lesson(sweep)
    else:
        sweep = Sweep(runs_dir() / name, until, swept, own)
        _check_stages(sweep)
    _refuse_twins(sweep)
    for taken in (name, *names) if new else ():
        check_new_run(taken)
    return sweep


def standing(lesson: str, like: str) -> str:
    """The run that a lesson is to stand on, as `open_run` finds it again.

    Raises:
        CourseError: the lesson has no scores, or the run is not there or not trained.
    """
    if not saves_scores(lesson):
        others = [number for number, name in lessons_by_number().items() if saves_scores(name)]
        raise CourseError(
            f"notebook {lesson} saves no scores to compare", f"notebooks that do: {', '.join(others)}"
        )
    run = Run(readable_run(like).path)
    run.stage("train")
    return run.name if run.path.parent == runs_dir().resolve() else str(run.path)


def _check_lesson(sweep: Sweep) -> None:
    for run, own in sweep.settings.items():
        with named(sweep, run):
            sweep.settings[run] = check_lesson(sweep.lesson, own)
            if backend := sweep.settings[run].get("backend_name"):
                choose_backend(backend)


def _check_stages(sweep: Sweep) -> None:
    own = sweep.settings
    if other := [key for key in sweep.swept if key in OTHER_RUNS]:
        raise CourseError(
            f"{other[0]} names a run: it is nothing to compare",
            "leave it out; a sweep takes over what its runs share by itself",
        )
    ask = cache(served_models)
    for run in own:
        with named(sweep, run):
            own[run], notes = settled(checked(own[run]))
            sweep.notes.extend(note for note in notes if note not in sweep.notes)
            check_base_run(own[run])
            check_run(sweep.stage_settings(run), own[run].get("base_model", ""), ask)


def _refuse_twins(sweep: Sweep) -> None:
    seen: list[tuple[str, Any]] = []
    where = sweep.lesson or f"the stages up to {sweep.until}"
    for name in sweep.settings:
        values = sweep.stage_settings(name)
        if twin := next((other for other, theirs in seen if theirs == values), None):
            raise CourseError(
                f"settings {_number(sweep, twin)} and {_number(sweep, name)} are the same in {where}: "
                f"{_given(sweep, name)}",
                "leave one out; a repetition needs another seed, such as --grid seed=1,2",
            )
        seen.append((name, values))


def open_sweep(name: str) -> Sweep:
    """A sweep that was begun before.

    Raises:
        RunError: there is none of this name, or its file is damaged.
    """
    path = runs_dir() / name / SWEEP_FILE
    if not path.is_file():
        raise RunError(
            f"there is no sweep {name!r} in {runs_dir()}",
            "start one: leave out --resume, and give --grid or --settings",
        )
    try:
        plan = _Plan.model_validate(read_json(path))
    except (RunError, ValidationError) as error:
        raise RunError(f"{path} is damaged", f"`course clean {name}` deletes the sweep") from error
    return Sweep(path.parent, plan.until, tuple(plan.swept), plan.runs, plan.lesson, plan.like)


@contextlib.contextmanager
def named(sweep: Sweep, name: str) -> Iterator[None]:
    """Puts in front of an error's text which setting it is about."""
    try:
        yield
    except CourseError as error:
        error.what = f"setting {_number(sweep, name)} ({_given(sweep, name)}): {error.what}"
        raise


def _number(sweep: Sweep, name: str) -> int:
    return list(sweep.settings).index(name) + 1


def _given(sweep: Sweep, name: str) -> str:
    own = sweep.settings[name]
    return " ".join(f"{key}={own[key]}" for key in sweep.swept if key in own) or "nothing set"
