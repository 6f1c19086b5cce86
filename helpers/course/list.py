"""`course list`: the runs, newest first."""

import argparse
import json
from datetime import UTC, datetime
from typing import Any

from helpers.course.arguments import add_command
from helpers.text import percent, size_text, table


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "list",
        run,
        "the runs, newest first",
        "One line a run: when it was made, accuracy of base and tuned model on the test set, size on disk, "
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
    rows = [["run", "made (UTC)", "base", "test", "size", "stages done"]]
    for run in runs:
        name = f"{run.name} (latest)" if run.latest else run.name
        scores = [percent(share) for share in run.accuracies] if run.accuracies else ["–", "–"]
        rows.append([name, minute(run.created), *scores, size_text(run.bytes), run.progress])
    print(table(rows, right={2, 3, 4}))
    for sweep in find_sweeps():
        print(f"sweep {sweep.name}: `course show {sweep.name}` compares its runs")
    return 0


def minute(when: datetime) -> str:
    """`2026-11-20 10:00`, in UTC."""
    return when.astimezone(UTC).strftime("%Y-%m-%d %H:%M")
