"""`course run --part` and `--lesson`: notebooks of Part 2 or 3 on a run of Part 1, into that run's folder."""

import argparse
import shlex
import sys
import time
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from helpers.errors import UsageError
from helpers.runs.stages import LESSONS, lessons_by_number
from helpers.text import clock, table

if TYPE_CHECKING:
    from helpers.runs.manifest import LessonEntry
    from helpers.runs.run import Run

PART_ONE_ONLY = {
    "first": "--from",
    "last": "--until",
    "like": "--like",
    "dry_run": "--dry-run",
    "json": "--json",
    "profile": "--profile",
    "data": "--data",
    "columns": "--columns",
    "skip_bad": "--skip-bad",
}


def run_part(options: argparse.Namespace) -> int:
    """Run the lessons of `options.part`, or `options.lesson` alone, and write the run's page again. Returns
    the exit status.

    Raises:
        CourseError: an option doesn't go with a lesson, there is no such setting, or no run with a finished
            training stage.
    """
    from helpers.course.execute import short
    from helpers.course.interrupt import heed_ctrl_c
    from helpers.runs.info import readable_run
    from helpers.runs.lessons import choose_lessons
    from helpers.runs.report.page import write_report
    from helpers.runs.run import Run

    which = ["--lesson", options.lesson] if options.lesson else ["--part", str(options.part)]
    lessons = [lessons_by_number()[options.lesson]] if options.lesson else LESSONS[options.part]
    settings = lesson_assignments(options)
    chosen = choose_lessons(lessons, settings)
    run = Run(readable_run(options.name or "latest").path)
    run.stage("train")
    if options.resume:
        chosen = unfinished(run, chosen)
    heed_ctrl_c()
    with run.in_use():
        again = ["course", "run", *which, "--resume", "--name", run.name]
        again += [word for setting in settings for word in ("-p", setting)]
        status = _run_all(run, chosen, shlex.join(again))
    if status == 0:
        print(f"a page to read or to send: {short(write_report(run))}")
    return status


def lesson_assignments(options: argparse.Namespace, allowed: Collection[str] = ()) -> list[str]:
    """The settings that the options choose, as after `-p`.

    Args:
        allowed: those of PART_ONE_ONLY that the command takes beside a lesson, too.

    Raises:
        UsageError: an option is given that only the stages of part 1 take.
    """
    refused = {name: flag for name, flag in PART_ONE_ONLY.items() if name not in allowed}
    if given := [flag for name, flag in refused.items() if getattr(options, name, None)]:
        what = f"notebook {options.lesson}" if options.lesson else f"part {options.part}"
        raise UsageError(
            f"{what} is run whole, on a run of part 1: {given[0]} is for notebooks 01 to 06",
            "leave it out, and set what the notebook's parameters cell names with -p",
        )
    return [*options.parameter, *([f"backend_name={options.backend}"] if options.backend else [])]


def unfinished(run: "Run", chosen: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The chosen lessons that are not done yet.

    Raises:
        UsageError: a setting is given for one that is done with another value.
    """
    from helpers.runs.lessons import defaults_of_lesson, placed

    lessons = run.manifest.lessons
    done = {lesson for lesson in chosen if lesson in lessons and lessons[lesson].status == "done"}
    for lesson in sorted(done):
        had = defaults_of_lesson(lesson) | placed(run, lesson, lessons[lesson].settings)
        if other := chosen[lesson].items() - had.items():
            name, value = sorted(other)[0]
            raise UsageError(
                f"{lesson} is done, and not with {name}={value}",
                "leave out --resume to run it again with this setting",
            )
    return {lesson: own for lesson, own in chosen.items() if lesson not in done}


def _run_all(run: "Run", chosen: dict[str, dict[str, Any]], again: str) -> int:
    """Run the lessons one after the other; `again` is the command that goes on if one fails."""
    from helpers.course.execute import INTERRUPTED, short

    print(f"run {run.name} → {short(run.path)}", flush=True)
    for number, (lesson, settings) in enumerate(chosen.items(), start=1):
        if status := run_lesson(run, lesson, settings, f"[{number}/{len(chosen)}]"):
            once = " To" if status == INTERRUPTED else " Once that is put right,"
            print(f"\nWhat was done is kept.{once} go on from here:  {again}", file=sys.stderr)
            return status
    lessons = run.manifest.lessons
    rows = [[lesson, clock(lessons[lesson].seconds), f"notebooks/{lesson}.ipynb"] for lesson in chosen]
    print("\n" + table([["lesson", "time", "file"], *rows], right={1}))
    print(f"everything is in {short(run.path)}")
    return 0


def run_lesson(run: "Run", lesson: str, settings: dict[str, Any], label: str) -> int:
    """Execute a lesson into `notebooks/` of the run folder, and print how it ended.

    Returns:
        0, 1 after printing what went wrong, or 130 if it was interrupted. The manifest says which.
    """
    from helpers.course.execute import attempt
    from helpers.paths import NOTEBOOKS
    from helpers.runs.lessons import placed
    from helpers.runs.manifest import LessonEntry, now

    entry, started = LessonEntry(status="started", started=now(), settings=settings), time.monotonic()
    _record(run, lesson, entry)

    def done() -> str:
        seconds = round(time.monotonic() - started, 1)
        _record(run, lesson, entry.model_copy(update={"status": "done", "seconds": seconds}))
        return "done"

    return attempt(run, lesson, NOTEBOOKS / f"{lesson}.ipynb", placed(run, lesson, settings), label, done)


def _record(run: "Run", lesson: str, entry: "LessonEntry") -> None:
    with run.edit() as manifest:
        manifest.lessons[lesson] = entry
