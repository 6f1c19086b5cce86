"""`course stub`: the stub Tinker backend that notebooks start by themselves."""

import argparse
from pathlib import Path
from typing import Any

from helpers.course.arguments import add_command
from helpers.course.serve import class_state
from helpers.errors import UsageError
from helpers.stub_folder import running_server


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "stub",
        run,
        "the stub Tinker backend that notebooks start by themselves: say what it does, or stop it",
        "The stub starts when a notebook needs it, and ends when it was unused for a while. The server of "
        "`course serve` is another one: status shows it too, and stop leaves it alone.",
        "course stub status",
        "course stub status --state-dir FOLDER   # of a class whose server was started with that option",
        "course stub stop      # free its memory now",
    )
    parser.add_argument("action", choices=["status", "stop"])
    parser.add_argument(
        "--state-dir", type=Path, metavar="FOLDER", help="with status: only the server with its state there"
    )


def run(options: argparse.Namespace) -> int:
    from helpers.stub_tinker.status import of_state_dir
    from helpers.train.backend import stop_stub, stub_state_dir

    if options.action == "stop":
        if options.state_dir:
            raise UsageError("--state-dir goes with status", "stop that server with Ctrl-C where it runs")
        print("the stub is ending" if stop_stub() else "no stub is running")
        return 0
    own = {"the notebooks' stub": stub_state_dir(), "the class": class_state()}
    places = {"the server": options.state_dir.absolute()} if options.state_dir else own
    running = [
        (name, folder, server) for name, folder in places.items() if (server := running_server(folder))
    ]
    if not running:
        print("no stub is running; the notebooks start it when they need it")
    for name, folder, server in running:
        print(f"{name}, process {server['pid']}: {of_state_dir(folder)}\n")
    return 0
