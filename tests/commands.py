"""The `course` command in tests: in this process where that is enough, else in one of its own."""

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.course.main import main
from helpers.paths import ROOT

COURSE = (sys.executable, "-m", "helpers.course")


def course(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit status, output and errors of the command, in this process."""
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as end:
        status = int(end.code or 0)
    return status, *capsys.readouterr()


def real_course(*arguments: object, timeout: float = 300, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, without a terminal."""
    return subprocess.run(
        [*COURSE, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        **options,
    )


def start(command: list[str], ignoring_ctrl_c: bool = False) -> subprocess.Popen[str]:
    """A process to interrupt.

    Args:
        ignoring_ctrl_c: start it as a shell script starts `command &`, and so `nohup make test &`: SIGINT is
            ignored there, and whatever it starts inherits that.
    """
    disposition = signal.SIG_IGN if ignoring_ctrl_c else signal.SIG_DFL
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=set_ctrl_c(disposition),
    )


def set_ctrl_c(disposition: signal.Handlers = signal.SIG_DFL) -> Callable[[], None]:
    """A `preexec_fn`: what the new process does on Ctrl-C before it says so itself."""

    def before_it_starts() -> None:
        signal.signal(signal.SIGINT, disposition)

    return before_it_starts


def assert_one_message(stderr: str, *parts: str) -> None:
    """One error, with its cause (all of `parts`) and one next step; no traceback."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", stderr)
    assert "Traceback" not in plain, plain
    assert len(re.findall(r"^course: ", plain, re.M)) == 1, plain
    assert len(re.findall(r"^→ \S", plain, re.M)) == 1, plain
    assert [part for part in parts if part not in plain] == [], plain


def tree(folder: Path) -> list[str]:
    """All that is in a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.exists() else []
