"""What the parsers of several commands share: how a command is added, and the options that choose
settings.
"""

import argparse
import textwrap
from collections.abc import Callable
from typing import Any

from helpers.course import completers


def add_command(
    commands: Any,
    name: str,
    function: Callable[[argparse.Namespace], int],
    help: str,
    description: str,
    *examples: str,
) -> argparse.ArgumentParser:
    """A subcommand, whose help ends with examples.

    Args:
        commands: from `add_subparsers`.
        function: takes the parsed options, gives the exit status.
    """
    epilog = "\n  ".join(["example:" if len(examples) == 1 else "examples:", *examples])
    parser = commands.add_parser(
        name,
        help=help,
        description=textwrap.fill(description, 100),
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(function=function)
    return parser


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The options that choose settings: of one run, or of all runs of a sweep."""
    profile = parser.add_argument(
        "--profile",
        metavar="PROFILE|FILE",
        help="a set of settings from helpers/runs/profiles.toml, or a .toml file of your own (default: "
        "quick)",
    )
    setting = parser.add_argument(
        "-p",
        "--parameter",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="set a parameter of the notebooks; may be given more than once",
    )
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="FILE",
        help="your own .json, .jsonl, .csv or .tsv files, or data sets: hub:OWNER/NAME",
    )
    parser.add_argument(
        "--columns",
        metavar="FIELD=COLUMN,...",
        help="which column of the data is what: instruction=text,output=label",
    )
    parser.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave out records that can't be used, and write them to split/skipped.jsonl of the run",
    )
    backend = parser.add_argument(
        "--backend", metavar="BACKEND", help="auto, stub, hosted, or the URL of a Tinker-compatible server"
    )
    completers.offer(profile, completers.profiles)
    completers.offer(setting, completers.settings)
    completers.offer(backend, completers.backends)


def chosen_settings(options: argparse.Namespace, profile: str | None = None) -> dict[str, Any]:
    """The settings that those options choose, checked.

    Args:
        profile: the one that is taken if the user names none.

    Raises:
        CourseError: there is no such profile, setting, file or model, or a value is not allowed.
    """
    from helpers.runs.chosen import choose

    return choose(
        options.profile or profile,
        options.parameter,
        options.data,
        options.columns,
        options.backend,
        options.skip_bad,
    )


def chooses_settings(options: argparse.Namespace) -> bool:
    """Whether any of those options is given."""
    more = options.columns, options.backend, options.skip_bad
    return any((options.profile, options.parameter, options.data, *more))
