"""`course completion`: switch on the Tab key."""

import argparse
from typing import Any

from helpers.course.arguments import add_command


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "completion",
        run,
        "print a script that completes commands with the Tab key",
        "Completes commands, options, profiles, runs and settings.",
        'eval "$(course completion bash)"                            # in this shell',
        "course completion bash >> ~/.bashrc                         # in every new one",
        "course completion zsh > ~/.zfunc/_course                    # zsh, with ~/.zfunc in fpath",
    )
    parser.add_argument("shell", choices=["bash", "zsh"])


def run(options: argparse.Namespace) -> int:
    """Print what the shell needs to ask `course` at each press of the Tab key."""
    from argcomplete.shell_integration import shellcode

    print(shellcode(["course"], shell=options.shell), end="")
    return 0
