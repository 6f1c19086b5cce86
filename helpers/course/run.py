"""`course run`: the stages of a run in order, a notebook each, and a table at the end."""

import argparse
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from helpers.course import completers
from helpers.course.arguments import add_command, add_settings, chosen_settings
from helpers.course.interrupt import heed_ctrl_c
from helpers.errors import RunError, UsageError
from helpers.runs.stages import STAGES
from helpers.text import clock, printable, red, table

if TYPE_CHECKING:
    from helpers.runs.run import Run


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
        dry_run: say what would happen, and do nothing.
        as_json: say it as JSON.
    """

    name: str
    settings: dict[str, Any]
    first: str | None = None
    last: str | None = None
    resume: bool = False
    like: str | None = None
    dry_run: bool = False
    as_json: bool = False


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "run",
        run,
        "run the notebooks in order, into a run folder",
        "Run the notebooks in order through papermill. Everything they make goes into runs/NAME, and "
        "runs/latest names the newest run.",
        "course run -p epochs=1 -p max_test=60 --until evaluate",
        "course run --dry-run --profile full      # how much, how long, what it costs",
        "course run --data tickets.csv --columns instruction=text,output=label -p task=classification",
        "course run --resume                      # go on where the newest run stopped",
        "course run --like latest -p rank=16      # the same again, but for one setting",
    )
    name = parser.add_argument(
        "--name", default="", metavar="RUN", help="name of the run folder (default: date and time)"
    )
    add_settings(parser)
    parser.add_argument("--from", dest="first", choices=STAGES, help="start at this stage of an existing run")
    parser.add_argument("--until", dest="last", choices=STAGES, help="end after this stage")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with an existing run (--name, default: latest) where it stopped, with its settings",
    )
    like = parser.add_argument(
        "--like",
        metavar="RUN",
        help="a new run with the settings of this one; says what changed since: packages, data files",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="say what would run, how long it takes and what it costs; start and write nothing",
    )
    parser.add_argument("--json", action="store_true", help="with --dry-run: as JSON")
    completers.offer(name, completers.runs)
    completers.offer(like, completers.runs)


def run(options: argparse.Namespace) -> int:
    if options.json and not options.dry_run:
        raise UsageError(
            "--json goes with --dry-run", "add --dry-run, or see a finished run: course show --json"
        )
    if options.like and (options.resume or options.first):
        raise UsageError(
            "--like starts a new run, --resume and --from go on with one", "leave one of them out"
        )
    old = options.resume or options.first or options.like
    return run_course(
        RunRequest(
            name=options.name,
            settings=chosen_settings(options, None if old else "quick"),
            first=options.first,
            last=options.last,
            resume=options.resume,
            like=options.like,
            dry_run=options.dry_run,
            as_json=options.json,
        )
    )


def run_course(request: RunRequest) -> int:
    """Run stages of a run, print a line for each and a table at the end; or say what that would be.

    Returns:
        The exit status.

    Raises:
        CourseError: the request can't be met, as far as that shows before the first notebook starts.
    """
    from helpers.runs.base_answers import check_base_run
    from helpers.runs.preflight import check_run
    from helpers.runs.run import new_run

    settings, notes, like = _settings(request)
    run, stages = choose_stages(request)
    if run:
        check_used(settings, run, stages)
        settings = run.manifest.settings | settings  # it keeps what it was started with
    if "evaluate" in stages:
        check_base_run(settings)
    check_run(settings, stages)
    if request.dry_run:
        from helpers.course.dry_run import print_plan

        print_plan(run, request.name, stages, settings, notes, request.as_json)
        return 0
    heed_ctrl_c()
    for note in notes:
        print(printable(f"note: {note}"), flush=True)
    run = run or new_run(request.name)
    with run.in_use():
        run.update(settings=settings, **({"like": like} if like else {}))
        status = run_stages(run, stages, settings)
    if status == 0:  # after the lock is let go: the page says whether the run is under way
        from helpers.course.execute import short
        from helpers.runs.report.page import write_report

        print(f"a page to read or to send: {short(write_report(run))}")
    return status


def _settings(request: RunRequest) -> tuple[dict[str, Any], list[str], str | None]:
    """What the user chose, with the settings of the run that this one is to be like; notes; that run's
    name.
    """
    if not request.like:
        return request.settings, [], None
    from helpers.runs.chosen import checked
    from helpers.runs.info import readable_run
    from helpers.runs.like import settings_like

    like = readable_run(request.like)
    settings, notes = settings_like(like.manifest, request.settings)
    return checked(settings), notes, like.name


def choose_stages(request: RunRequest) -> "tuple[Run | None, list[str]]":
    """The run to go on with, None for a new one, and the stages to do. Makes nothing.

    Raises:
        CourseError: there is no such run, nothing is left to do in it, or the name of a new one is taken.
    """
    from helpers.runs.info import readable_run
    from helpers.runs.run import Run, check_new_run

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


def _stopped_at(run: "Run") -> str:
    """The first stage that is not done, or that failed in a check after its work."""
    manifest = run.manifest
    failed = manifest.failure.stage if manifest.failure else ""
    for stage in STAGES:
        if not manifest.stages.is_done(stage) or stage == failed:
            return stage
    raise RunError(
        f"run {run.name} is complete", "leave out --resume to start another, or name a stage with --from"
    )


def check_used(settings: dict[str, Any], run: "Run", stages: list[str]) -> None:
    """Refuse a setting that only stages take which are done and would not run again: the run would carry it
    and not have used it.

    Raises:
        UsageError: there is one.
    """
    from helpers.runs.settings import taken_by

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


def run_stages(run: "Run", stages: list[str], settings: dict[str, Any]) -> int:
    """Execute the notebooks of these stages, one after the other. Returns the exit status."""
    from helpers.course.execute import run_notebook, short
    from helpers.runs.settings import fields_named

    print(f"run {run.name} → {short(run.path)}", flush=True)
    started = time.monotonic()
    for number, stage in enumerate(stages, start=1):
        own = {name: value for name, value in settings.items() if stage in fields_named(name)}
        status = run_notebook(run, stage, own, f"[{number}/{len(stages)}]")
        if status:
            print(
                f"\nWhat was done is kept. To go on from here:  course run --resume --name {run.name}",
                file=sys.stderr,
            )
            return status
    print_summary(run, stages, time.monotonic() - started)
    return 0


def print_summary(run: "Run", stages: list[str], seconds: float) -> None:
    """The table at the end: stage, time, key result, file; and what the time went to."""
    from helpers.course.execute import short

    entries = {stage: run.stage(stage) for stage in stages}
    rows = [["stage", "time", "key result", "file"]]
    for stage, entry in entries.items():
        rows.append([stage, clock(entry.seconds), entry.summary, (entry.artefacts or [""])[0]])
    print("\n" + table(rows, right={1}))
    if flag := run.manifest.flag:
        print(red(flag))
    work: dict[str, float] = {}
    for entry in entries.values():
        for kind, spent in entry.work_seconds.items():
            work[kind] = work.get(kind, 0.0) + spent
    within, worked = sum(entry.seconds or 0.0 for entry in entries.values()), sum(work.values())
    spans = [f"{kind} {clock(spent)}" for kind, spent in work.items()]
    print(f"\n{clock(seconds)} in all: {', '.join(spans)}")
    print(
        f"the rest {clock(seconds - worked)}, {(seconds - worked) / seconds:.0%}: within the stages "
        f"{clock(max(0, within - worked))} (imports, model loading, figures), around them "
        f"{clock(max(0, seconds - within))} (kernel starts, first cells, exercises)"
    )
    print(f"everything is in {short(run.path)}; the executed notebooks are in its notebooks/ folder")
