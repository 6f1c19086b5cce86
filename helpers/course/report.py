"""`course report`: one page of HTML for a run, or one that compares several."""

import argparse
from pathlib import Path
from typing import Any

from helpers.course import completers
from helpers.course.arguments import add_command


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "report",
        run,
        "one page of HTML for a run, or one that compares several",
        "Write a page that needs no network and no other file, to read or to send. Of one run: settings, "
        "data, curves, scores, answers to read, parity, times, versions. Of several: what differs, scores "
        "side by side, and the paired test on the same problems, with the run named first as the one to "
        "compare with. The name of a sweep stands for its runs. A run need not be complete: the page says "
        "what is missing, stale or damaged in it.",
        "course report                          # the newest run, into its report.html",
        "course report first second third       # side by side, into comparison.html in the runs folder",
        "course report my-sweep                 # its runs side by side, into its report.html",
        "course report my-run --output to_send.html --open",
    )
    runs = parser.add_argument(
        "runs", nargs="*", metavar="RUN|SWEEP", help="names of runs or sweeps (default: latest)"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write it; ends in .html")
    parser.add_argument("--open", action="store_true", help="show it in a browser")
    parser.add_argument(
        "--json", action="store_true", help="say as JSON where it is, with scores, and what is missing"
    )
    completers.offer(runs, completers.runs_and_sweeps)


def run(options: argparse.Namespace) -> int:
    from helpers.runs.report.command import report_runs

    return report_runs(options.runs, options.output, options.open, options.json)
