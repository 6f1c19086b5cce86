"""`course sweep`: a run for each of many settings, and their comparison."""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.course import completers
from helpers.course.arguments import add_command, add_settings, chooses_settings, chosen_settings
from helpers.course.interrupt import ended_like_ctrl_c, heed_ctrl_c
from helpers.errors import RunError, UsageError
from helpers.runs.stages import STAGES, lessons_by_number
from helpers.text import plural, printable, red

if TYPE_CHECKING:
    from helpers.runs.sweep.plan import Sweep


@dataclass(frozen=True)
class SweepRequest:
    """What the user wants, parsed and checked.

    Attributes:
        name: of the sweep.
        varied: settings, one dictionary a run; empty to go on with those that the sweep has.
        common: settings of all runs.
        last: the stage to end with.
        lesson: the notebook of Part 2 or 3 to run instead of the stages; empty for none.
        like: the run that a lesson stands on.
        resume: go on with a sweep that was begun before.
        jobs: runs at a time.
        dry_run: say what would happen, and do nothing.
        as_json: the results, or the plan, as JSON.
    """

    name: str
    varied: list[dict[str, Any]]
    common: dict[str, Any]
    last: str
    lesson: str = ""
    like: str = "latest"
    resume: bool = False
    jobs: int | None = None
    dry_run: bool = False
    as_json: bool = False


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "sweep",
        run,
        "run many settings, a run each, and compare them",
        "Run every combination of --grid, or every setting of a file, and compare them on the validation "
        "data. Each is a run like any other: runs/NAME-01, runs/NAME-02, …. What they share is done once: "
        "the split, and the answers of the base model. A run that fails does not stop the others. Table and "
        "plot go into runs/NAME, and at the end runs/latest names the best by validation. With --lesson, "
        "each run is a copy of a trained run, on which a notebook of part 2 or 3 is run; the scores that it "
        "saves are compared.",
        "course sweep --name ranks --grid rank=8,32 --grid learning_rate=1e-3,3e-4 --dry-run",
        "course sweep --name ranks --grid rank=8,32 --grid learning_rate=1e-3,3e-4 -p epochs=2",
        "course sweep --name ranks --resume           # the failed and missing ones",
        "course sweep --name seeds --grid seed=1,2,3  # how much is luck?",
        "course sweep --name mine --settings settings.csv --until train",
        "course show ranks                            # the table again",
        "course sweep --name rl --lesson 10 --grid group_size=4,8 --grid kl=0,0.02 -p steps=6",
    )
    name = parser.add_argument("--name", required=True, metavar="SWEEP", help="name of the sweep")
    grid = parser.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="NAME=VALUE,VALUE",
        help="values of a notebook parameter; may be given more than once, for all combinations",
    )
    parser.add_argument(
        "--settings",
        metavar="FILE",
        help="the settings, a run each: a .json list of objects, or a .csv table with a head",
    )
    add_settings(parser)
    parser.add_argument(
        "--until", dest="last", choices=STAGES, help="end after this stage (default: evaluate)"
    )
    parser.add_argument(
        "--lesson",
        choices=lessons_by_number(),
        help="run this notebook of part 2 or 3 instead, by its number; --grid and -p take the names in its "
        "parameters cell",
    )
    like = parser.add_argument(
        "--like",
        metavar="RUN",
        help="with --lesson: the run that it stands on, whose training is done (default: latest)",
    )
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="runs at a time (default: 1). On one stub they share its cores"
    )
    _add_ways(parser)
    completers.offer(name, completers.sweeps)
    completers.offer(grid, completers.settings)
    completers.offer(like, completers.runs)


def _add_ways(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with a sweep: do what failed or is missing, with its settings",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="say what would run, how long and at what cost; start and write nothing",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="the results, or the plan, as JSON; progress goes to the error output",
    )


def run(options: argparse.Namespace) -> int:
    if options.jobs is not None and options.jobs < 1:
        raise UsageError(f"--jobs {options.jobs}", "give 1 or more")
    if options.like and not options.lesson:
        raise UsageError("--like goes with --lesson", "name a notebook, for example --lesson 10")
    varied = _varied(options)
    request = SweepRequest(
        name=options.name,
        varied=varied,
        common=_common(options) if varied else {},
        last=options.last or "evaluate",
        lesson=lessons_by_number()[options.lesson] if options.lesson else "",
        like=options.like or "latest",
        resume=options.resume,
        jobs=options.jobs,
        dry_run=options.dry_run,
        as_json=options.json,
    )
    return run_request(request)


def _common(options: argparse.Namespace) -> dict[str, Any]:
    """The settings of all runs."""
    if not options.lesson:
        return chosen_settings(options, "quick")
    from helpers.course.lessons import lesson_assignments
    from helpers.runs.lessons import choose_lessons

    lesson = lessons_by_number()[options.lesson]
    return choose_lessons([lesson], lesson_assignments(options, allowed=("like", "dry_run", "json")))[lesson]


def _varied(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The settings of the runs, one dictionary a run; empty if the user goes on with those of the sweep."""
    from helpers.runs.sweep.grid import grid, grid_values, read_settings

    given = options.grid or options.settings or options.last or options.lesson
    if options.resume and not (given or chooses_settings(options)):
        return []
    if bool(options.grid) == bool(options.settings):
        raise UsageError(
            "a sweep takes its settings from --grid or from --settings",
            "leave out all settings to go on with the sweep's own"
            if options.resume
            else "give one of the two, for example --grid rank=8,32",
        )
    if options.settings:
        return read_settings(Path(options.settings))
    values = grid_values(options.grid)
    fixed = {text.partition("=")[0].strip() for text in options.parameter}
    if twice := fixed.intersection(values):
        raise UsageError(f"{min(twice)} is set by -p and by --grid", "leave one of them out")
    return grid(values)


def run_request(request: SweepRequest) -> int:
    """Plan, run or resume a sweep and print its table.

    Returns:
        The exit status: 1 if a run is not done.

    Raises:
        CourseError: the settings can't be used, as far as that shows before the first run starts.
    """
    from helpers.runs.sweep.estimate import estimate_sweep, plan_text, time_line
    from helpers.runs.sweep.lessons import estimate_lesson, lesson_plan_text, lesson_time_line
    from helpers.runs.sweep.results import collect
    from helpers.runs.sweep.run import run_sweep

    sweep = choose_sweep(request)
    plan = estimate_lesson(sweep) if sweep.lesson else estimate_sweep(sweep)
    if request.dry_run:
        shown = lesson_plan_text(plan) if sweep.lesson else plan_text(plan)
        text = "dry run: nothing is started or written. It would be\n" + shown
        print(json.dumps(plan, indent=2) if request.as_json else printable(text))
        return 0
    heed_ctrl_c()
    say = _say_as_error if request.as_json else print
    done = [row["run"] for row in collect(sweep) if row["status"] == "done"]
    before = f", done before: {len(done)}" if done else ""
    runs = f"{plural(len(sweep.settings), 'run')} {sweep.what}"
    say(f"sweep {sweep.name}: {runs}{before} → {sweep.folder}")
    for note in sweep.notes:
        say(printable(f"note: {note}"))
    say(lesson_time_line(plan, done) if sweep.lesson else time_line(plan, done))
    try:
        with ended_like_ctrl_c():
            run_sweep(sweep, request.jobs, say)
    except KeyboardInterrupt:
        again = f"course sweep --resume --name {sweep.name}"
        print(f"\nWhat was done is kept. To go on:  {again}", file=sys.stderr)
        raise
    return print_results(sweep.name, request.as_json)


def _say_as_error(text: str) -> None:
    print(text, file=sys.stderr)


def choose_sweep(request: SweepRequest) -> "Sweep":
    """The sweep to start, or to go on with.

    Raises:
        CourseError: the settings can't be used, or are not those that the sweep was started with.
    """
    from helpers.runs.sweep.plan import open_sweep, plan_sweep, standing

    old = open_sweep(request.name) if request.resume else None
    if old and not request.varied:
        return old
    like = request.like
    if old:  # whatever is latest by now, and though the run may be gone
        like = old.like if like in ("latest", old.like) else standing(request.lesson, like)
    settings = request.name, request.varied, request.common, request.last
    new = plan_sweep(*settings, new=old is None, lesson=request.lesson, like=like)
    if old and old != new:
        raise RunError(
            f"sweep {old.name} was started with other settings: {_difference(old, new)}",
            "leave them out to go on with it, or start another with another --name",
        )
    return new


def _difference(old: "Sweep", new: "Sweep") -> str:
    for name in old.settings | new.settings:
        if old.settings.get(name) != new.settings.get(name):
            return f"{name} had {old.settings.get(name)}, now {new.settings.get(name)}"
    return f"its runs were {old.what}, now {new.what}"


def print_results(name: str, as_json: bool = False) -> int:
    """Print the results of a sweep as they are now. Returns 1 if a run is not done.

    Raises:
        RunError: there is no such sweep, or it is damaged.
    """
    from helpers.runs.sweep.plan import open_sweep
    from helpers.runs.sweep.results import best_row, collect, flags_text, results_text

    sweep = open_sweep(name)
    rows = collect(sweep)
    if as_json:
        best = best_row(sweep, rows)
        found = {"sweep": name, "path": str(sweep.folder), "until": sweep.until, "lesson": sweep.lesson}
        found |= {"best": best["run"] if best else None, "runs": rows}
        print(json.dumps(found, indent=2))
    else:
        print("\n" + printable(results_text(sweep, rows)))
        if flags := flags_text(rows):
            print(red(flags))
        made = "table" if sweep.lesson else "table, plot"
        print(f"{made} and a page that compares the runs: {sweep.folder}")
    not_done = [row for row in rows if row["status"] != "done"]
    if not_done:
        again = f"course sweep --resume --name {name}"
        print(f"\nnot done: {len(not_done)} of {len(rows)} runs. To do them:  {again}", file=sys.stderr)
    return 1 if not_done else 0
