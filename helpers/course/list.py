"""`course list`: the runs, newest first."""

import argparse
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from helpers.course.arguments import add_command
from helpers.text import rate_text, red, size_text, table

if TYPE_CHECKING:
    from helpers.runs.info import RunInfo


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "list",
        run,
        "the runs, newest first",
        "One line a run: when it was made, how base and tuned model did on the test set, size on disk, "
        "stages done.",
        "course list",
        "course list --json | python -m json.tool",
    )
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(options: argparse.Namespace) -> int:
    from helpers.paths import runs_dir
    from helpers.runs.info import find_runs, find_sweeps, summary

    runs = find_runs()
    if options.json:
        print(json.dumps([summary(run) for run in runs], indent=2))
        return 0
    if not runs:
        print(f"there is no run in {runs_dir()} yet: `course run` makes one")
        return 0
    rows = [["run", "made (UTC)", "measure", "base", "test", "size", "stages done"]]
    for run in runs:
        name = f"{run.name} (latest)" if run.latest else run.name
        rows.append([name, minute(run.created), *_scores(run), size_text(run.bytes), run.progress])
    print(table(rows, right={3, 4, 5}))
    for run in runs:
        if run.flag:
            print(red(f"{run.name}: {run.flag}"))
    for sweep in find_sweeps():
        print(f"sweep {sweep.name}: `course show {sweep.name}` compares its runs")
    return 0


def _scores(run: "RunInfo") -> list[str]:
    """Name of the measure, base and tuned model."""
    if (found := run.evaluated) is None:
        return ["–", "–", "–"]
    pairs = ((found.base_accuracy, found.base_mean_f1), (found.test_accuracy, found.test_mean_f1))
    return [run.task.measure, *(rate_text(*pair) for pair in pairs)]


def minute(when: datetime) -> str:
    """`2026-11-20 10:00`, in UTC."""
    return when.astimezone(UTC).strftime("%Y-%m-%d %H:%M")
