"""What `course run` is to do: which run, which stages, with which settings. Makes nothing."""

from dataclasses import dataclass
from typing import Any

from helpers.errors import RunError, UsageError
from helpers.runs.base_answers import check_base_run
from helpers.runs.chosen import checked
from helpers.runs.estimate import Counted, count_parts
from helpers.runs.hosted import settled
from helpers.runs.info import readable_run
from helpers.runs.like import settings_like
from helpers.runs.preflight import backend_of, check_data, check_run
from helpers.runs.run import Run, check_new_run
from helpers.runs.settings import settings_of, taken_by
from helpers.runs.stages import STAGES


@dataclass(frozen=True)
class RunRequest:
    """What the user wants, parsed and checked.

    Attributes:
        name: of the run; empty for date and time, or for `latest` where a run is to go on.
        settings: what the user chose, by name.
        first: the stage to begin with, in a run that is there.
        last: the stage to end with.
        resume: go on with a run where it stopped.
        like: name of the run whose settings are taken over.
    """

    name: str
    settings: dict[str, Any]
    first: str | None = None
    last: str | None = None
    resume: bool = False
    like: str | None = None


@dataclass(frozen=True)
class RunPlan:
    """What will be done.

    Attributes:
        run: the run to go on with; None for a new one.
        name: of the new run; empty for date and time.
        settings: what the user and the run set, by name.
        of_stages: all settings of each stage that is to run, in order.
        notes: what to say about the settings: a sentence each.
        like: the run whose settings were taken over, if any.
        counted: records and tokens of the data.
    """

    run: Run | None
    name: str
    settings: dict[str, Any]
    of_stages: dict[str, Any]
    notes: list[str]
    like: str | None
    counted: Counted

    @property
    def stages(self) -> list[str]:
        return list(self.of_stages)

    @property
    def backend(self) -> str:
        """The backend's name; empty if no stage uses one."""
        return backend_of(self.of_stages)


def plan_run(request: RunRequest) -> RunPlan:
    """The plan that meets a request.

    Raises:
        CourseError: the request can't be met, as far as that shows before the first notebook starts.
    """
    settings, notes, like = request.settings, [], None
    if request.like:
        like = readable_run(request.like)
        settings, notes = settings_like(like.manifest, settings)
        settings = checked(settings)
    run, stages = choose_stages(request)
    if run:
        check_used(settings, run, stages)
        settings = run.manifest.settings | settings  # it keeps what it was started with
    if "train" in stages or not run:
        settings, of_hosted = settled(settings)
        notes = [*notes, *of_hosted]
    if "evaluate" in stages:
        check_base_run(settings)
    of_stages = {stage: settings_of(stage, settings) for stage in stages}
    trained = run.manifest.base_model if run and "train" not in stages else None
    context = check_run(of_stages, trained or settings.get("base_model", ""))
    counted = count_parts(of_stages, run)
    check_data(of_stages, counted, context)
    return RunPlan(run, request.name, settings, of_stages, notes, like and like.name, counted)


def choose_stages(request: RunRequest) -> tuple[Run | None, list[str]]:
    """The run to go on with, None for a new one, and the stages to do.

    Raises:
        CourseError: there is no such run, nothing is left to do in it, or the name of a new one is taken.
    """
    stages = list(STAGES)
    if request.resume or request.first:
        run = Run(readable_run(request.name or "latest").path)
        first = request.first or _stopped_at(run)
    else:
        check_new_run(request.name)
        run, first = None, stages[0]
    last = request.last or stages[-1]
    chosen = stages[stages.index(first) : stages.index(last) + 1]
    if not chosen:
        raise UsageError(
            f"stage {first} comes after {last}", "--until names the same stage as --from, or a later one"
        )
    if run:
        for needed in STAGES[chosen[0]].needs:
            run.stage(needed)
    return run, chosen


def _stopped_at(run: Run) -> str:
    """The first stage that is not done, or that failed in a check after its work."""
    manifest = run.manifest
    failed = manifest.failure.stage if manifest.failure else ""
    for stage in STAGES:
        if not manifest.stages.is_done(stage) or stage == failed:
            return stage
    raise RunError(
        f"run {run.name} is complete", "leave out --resume to start another, or name a stage with --from"
    )


def check_used(settings: dict[str, Any], run: Run, stages: list[str]) -> None:
    """Refuse a setting that only stages take which are done and would not run again: the run would carry it
    and not have used it.

    Raises:
        UsageError: there is one.
    """
    found = run.manifest.stages
    for name, value in settings.items():
        takers = taken_by(name)
        entries = [found.get(stage) for stage in takers if found.is_done(stage) and stage not in stages]
        unused = any(entry and getattr(entry.settings, name) != value for entry in entries)
        if len(entries) == len(takers) and unused:
            raise UsageError(
                f"{name}={value} belongs to {STAGES[takers[0]].notebook}, which would not run again in run "
                f"{run.name}",
                f"add --from {takers[0]}, or start another run: course run --like {run.name} -p {name}=…",
            )
