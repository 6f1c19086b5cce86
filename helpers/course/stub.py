"""`course stub`: the stub Tinker backend that notebooks start by themselves."""

import argparse
from typing import Any

from helpers.course.arguments import add_command


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "stub",
        run,
        "the stub Tinker backend that notebooks start by themselves: say what it does, or stop it",
        "The stub starts when a notebook needs it, and ends when it was unused for a while.",
        "course stub status",
        "course stub stop      # free its memory now",
    )
    parser.add_argument("action", choices=["status", "stop"])


def run(options: argparse.Namespace) -> int:
    from helpers.train.backend import running_stub, stop_stub, stub_state_dir

    if options.action == "stop":
        print("the stub is ending" if stop_stub() else "no stub is running")
        return 0
    server = running_stub()
    if server is None:
        print("no stub is running; the notebooks start it when they need it")
        return 0
    from helpers.stub_tinker.status import of_state_dir

    print(f"process {server['pid']}: {of_state_dir(stub_state_dir())}")
    return 0
