"""`course run`: the stages of a run in order, a notebook each, and a table at the end."""

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from helpers.course import completers
from helpers.course.arguments import add_command, add_settings, chosen_settings
from helpers.course.interrupt import heed_ctrl_c
from helpers.errors import UsageError
from helpers.runs.stages import LESSONS, STAGES, lessons_by_number
from helpers.text import clock, printable, red, table

if TYPE_CHECKING:
    from helpers.runs.plan import RunPlan
    from helpers.runs.run import Run


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
        "course run --part 3 -p steps=4           # notebooks 10 and later, in the folder of the newest run",
    )
    name = parser.add_argument(
        "--name", default="", metavar="RUN", help="name of the run folder (default: date and time)"
    )
    after = parser.add_mutually_exclusive_group()
    after.add_argument(
        "--part",
        type=int,
        choices=(1, *LESSONS),
        default=1,
        help="2 or 3: run the notebooks of that part on a run (--name, default: latest) whose training is "
        "done, into its folder",
    )
    after.add_argument(
        "--lesson", choices=lessons_by_number(), help="run one notebook of part 2 or 3 so, by its number"
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
    if options.lesson or options.part in LESSONS:
        from helpers.course.lessons import run_part

        return run_part(options)
    if options.json and not options.dry_run:
        raise UsageError(
            "--json goes with --dry-run", "add --dry-run, or see a finished run: course show --json"
        )
    if options.like and (options.resume or options.first):
        raise UsageError(
            "--like starts a new run, --resume and --from go on with one", "leave one of them out"
        )
    from helpers.runs.plan import RunRequest, plan_run
    from helpers.runs.preflight import no_key
    from helpers.train.keys import hosted_key

    old = options.resume or options.first or options.like
    settings = chosen_settings(options, None if old else "quick")
    plan = plan_run(
        RunRequest(options.name, settings, options.first, options.last, options.resume, options.like)
    )
    if options.dry_run:
        from helpers.course.dry_run import print_plan

        print_plan(plan, options.json)
        return 0
    if no_key(plan.backend):
        hosted_key()
    return run_plan(plan)


def run_plan(plan: "RunPlan") -> int:
    """Run the stages, print a line for each and a table at the end. Returns the exit status."""
    from helpers.runs.run import new_run

    heed_ctrl_c()
    for note in plan.notes:
        print(printable(f"note: {note}"), flush=True)
    run = plan.run or new_run(plan.name)
    with run.in_use():
        run.update(settings=plan.settings, **({"like": plan.like} if plan.like else {}))
        status = run_stages(run, plan.stages, plan.settings)
    if status == 0:  # after the lock is let go: the page says whether the run is under way
        from helpers.course.execute import short
        from helpers.runs.report.page import write_report

        print(f"a page to read or to send: {short(write_report(run))}")
    return status


def run_stages(run: "Run", stages: list[str], settings: dict[str, Any]) -> int:
    """Execute the notebooks of these stages, one after the other. Returns the exit status."""
    from helpers.course.execute import INTERRUPTED, run_notebook, short
    from helpers.runs.settings import fields_named

    print(f"run {run.name} → {short(run.path)}", flush=True)
    started = time.monotonic()
    for number, stage in enumerate(stages, start=1):
        own = {name: value for name, value in settings.items() if stage in fields_named(name)}
        status = run_notebook(run, stage, own, f"[{number}/{len(stages)}]")
        if status:
            print(how_to_go_on(run.name, stages[-1], failed=status != INTERRUPTED), file=sys.stderr)
            return status
    print_summary(run, stages, time.monotonic() - started)
    return 0


def how_to_go_on(name: str, last: str, failed: bool) -> str:
    """What to type after a run ended early.

    Args:
        last: the stage that it was to end with.
        failed: it was not interrupted: something has to change first.
    """
    until = "" if last == list(STAGES)[-1] else f" --until {last}"
    command = f"course run --resume --name {name}{until}"
    if not failed:
        return f"\nWhat was done is kept. To go on from here:  {command}"
    return (
        "\nWhat was done is kept. Once that is put right, go on from here; add -p NAME=VALUE to change a "
        f"setting:  {command}"
    )


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
