# PYTHON_ARGCOMPLETE_OK
"""The `course` command, put together: the parser, exit statuses, how errors are shown."""

import argparse
import os
import sys
from collections.abc import Sequence

from helpers.course import (
    check,
    check_template,
    clean,
    completers,
    completion,
    lab,
    list,
    report,
    run,
    serve,
    show,
    stub,
    sweep,
)
from helpers.errors import CourseError, UsageError

INTERRUPTED = 130
COMMANDS = (run, sweep, list, show, report, clean, check, check_template, stub, serve, lab, completion)
EXIT_CODES = """exit status:
  0    done
  1    an error was reported, a check failed, or the answer to a question was no
  2    wrong usage: an unknown command or option, or options that don't go together
  130  interrupted (Ctrl-C); `course serve` and `course lab` end with 0, since that is how they are ended"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point.

    Returns:
        The exit status: 0 done, 1 an error was reported, 2 wrong usage, 130 interrupted.
    """
    parser = make_parser()
    if "_ARGCOMPLETE" in os.environ:  # a press of the Tab key: this call ends the process
        completers.complete(parser)
    own, more = _cut(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(own)
    options.more = more
    try:
        status = options.function(options)
        sys.stdout.flush()
        return status
    except CourseError as error:
        print(f"course: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        print("\ncourse: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `course list | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _cut(arguments: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """What stands before and after the first `--` of `course lab`: the second part is for JupyterLab."""
    if arguments[:1] != ["lab"] or "--" not in arguments:
        return arguments, []
    place = arguments.index("--")
    return arguments[:place], arguments[place + 1 :]


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="course",
        description="The Tinker course: from a JSON file of examples to a fine-tuned model in vLLM.",
        epilog="`course COMMAND --help` explains a command, with examples.\n\n" + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser
