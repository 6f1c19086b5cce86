"""`course serve`: one stub Tinker backend for a class, with a key for each learner.

A key is what keeps learners apart: what belongs to one does not exist for another. So the keys are the
instructor's list of the class, and are kept from lesson to lesson.
"""

import argparse
import csv
import io
import re
import secrets
import shlex
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from helpers import paths
from helpers.course.arguments import add_command
from helpers.course.capacity import SAMPLED, TRAINED, capacity
from helpers.course.interrupt import heed_ctrl_c
from helpers.data.csv_files import read_cells
from helpers.errors import CourseError, UsageError
from helpers.files import read_text, write_text
from helpers.net import is_loopback
from helpers.runs.stages import STAGES

COLUMNS = ("learner", "key", "first line to type", "second line to type")
MOST = 500


@dataclass(frozen=True)
class Lesson:
    """A class to serve.

    Attributes:
        keys_file: the table of keys.
        state: folder for checkpoints.
        learners: a number, or a file with a name a line; None for those that have keys.
        new_keys: replace all keys.
        show_keys: print the keys too.
        host: address to listen on.
        address: what learners type for this machine; empty: found out.
        base_models: folders; none for the course's own.
    """

    keys_file: Path
    state: Path
    learners: str | None = None
    new_keys: bool = False
    show_keys: bool = False
    host: str = "127.0.0.1"
    port: int = 8765
    address: str = ""
    base_models: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        return f"http://{typed_address(self.host, self.address)}:{self.port}"


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "serve",
        run,
        "one stub Tinker backend for a class, with a key for each learner",
        "Writes a table with a key for each learner, says what they have to type and how many this machine "
        "carries, and serves until Ctrl-C. Keys that are there are kept: run it again for the next lesson, "
        "or with more names for those who came late.",
        "course serve --learners 12                       # try it here; only this machine can reach it",
        "course serve --learners names.txt --host 0.0.0.0 # a name a line; open to the network",
        "course serve --host 0.0.0.0                      # the next lesson, with the same keys",
    )
    parser.add_argument(
        "--learners",
        metavar="N|FILE",
        help="how many, or a file with a name a line; those without a key get one",
    )
    parser.add_argument(
        "--keys",
        type=Path,
        metavar="FILE",
        help="the table of keys (default: class/learners.csv in the course's cache folder)",
    )
    parser.add_argument(
        "--new-keys",
        action="store_true",
        help="replace all keys; nobody can reach what belongs to the old ones",
    )
    parser.add_argument(
        "--show-keys", action="store_true", help="print the keys too; else they are in the table only"
    )
    _add_place(parser)


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8765, help="port to listen on (default: %(default)s)")
    parser.add_argument(
        "--address",
        default="",
        metavar="NAME",
        help="what learners type for this machine (default: found out)",
    )
    parser.add_argument(
        "--state-dir",
        type=Path,
        metavar="FOLDER",
        help="for checkpoints (default: class/stub in the course's cache folder)",
    )
    parser.add_argument(
        "--base-model",
        action="append",
        default=[],
        metavar="FOLDER",
        help="another base model than the course's; may be given more than once",
    )


def class_folder() -> Path:
    """Where the table of keys is, unless an option says otherwise."""
    return paths.cache_dir() / "class"


def class_state() -> Path:
    """Where the server's state is, unless an option says otherwise."""
    return class_folder() / "stub"


def run(options: argparse.Namespace) -> int:
    if not 1 <= options.port <= 65535:
        raise UsageError(
            f"learners can't be told the port {options.port}", "choose one from 1 to 65535: --port 8765"
        )
    heed_ctrl_c()
    return serve_class(
        Lesson(
            keys_file=(options.keys or class_folder() / "learners.csv").absolute(),
            state=(options.state_dir or class_state()).absolute(),
            learners=options.learners,
            new_keys=options.new_keys,
            show_keys=options.show_keys,
            host=options.host,
            port=options.port,
            address=options.address,
            base_models=tuple(options.base_model),
        )
    )


def serve_class(lesson: Lesson) -> int:
    """Make or extend the file of keys, start the stub in the foreground, say what learners have to type.

    Returns:
        The exit status: 0 when it was stopped.

    Raises:
        UsageError: there are no learners.
        CourseError: a file can't be used, or the port is taken.
    """
    from helpers.stub_tinker.options import Roster, parse_arguments
    from helpers.stub_tinker.starting import bind
    from helpers.stub_tinker.starting import run as run_stub

    path = lesson.keys_file
    names = learner_names(lesson.learners) if lesson.learners else []
    known = {} if lesson.new_keys or not path.exists() else read_keys(path)
    keys = known | {name: f"tml-{secrets.token_urlsafe(18)}" for name in names if name not in known}
    if not keys:
        raise UsageError(
            f"there are no learners: {path} does not exist yet",
            "say how many, course serve --learners 12, or name a file with a name a line",
        )
    bind(lesson.host, lesson.port).close()  # a port that is taken is found before anything is written
    write_keys(path, keys, lesson.url)
    print(f"{len(keys)} learners, {len(keys.keys() - known.keys())} of them new; their keys are in {path}")
    print(f"{capacity(len(keys))}\nstarting …", flush=True)

    def say(_: str, stub: argparse.Namespace, service: Any) -> None:
        print(_welcome(lesson, list(service.engine.bases)), flush=True)
        if lesson.show_keys:
            print("\n".join(["", *(f"{name}  {key}" for name, key in keys.items())]), flush=True)

    where = ["--host", lesson.host, "--port", str(lesson.port), "--state-dir", str(lesson.state)]
    bases = [word for folder in lesson.base_models for word in ("--base-model", folder)]
    more = ["--name", lesson.address] if lesson.address else []
    stub = parse_arguments([*where, *bases, *more])
    stub.api_key = list(keys.values())  # not as words of a command, which everybody on the machine can list
    stub.roster = Roster(
        {key: name for name, key in keys.items()}, STAGES["train"].notebook, TRAINED, SAMPLED
    )
    return run_stub(stub, say)


def learner_names(learners: str) -> list[str]:
    """Names from a number, `learner-01` and so on, or from a file with a name a line; lines with # are notes.

    Raises:
        CourseError: the number or the file can't be used; names the line.
    """
    if re.fullmatch(r"\d{1,9}", learners):
        if not 1 <= int(learners) <= MOST:
            raise UsageError(
                f"--learners {learners}: a class has 1 to {MOST}",
                "correct the number, or name a file with a name a line",
            )
        return [f"learner-{number:02}" for number in range(1, int(learners) + 1)]
    fix = "give a number, --learners 12, or a text file with a name a line"
    lines = read_text(learners, fix).splitlines()
    names: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        if not re.fullmatch(r"\w[\w .'’-]{0,59}", name):
            raise CourseError(
                f"{learners}, line {number}: {name[:60]!r} can't name a learner",
                "use letters, digits, spaces and . ' - only, at most 60",
            )
        if name in names:
            raise CourseError(
                f"{learners}, line {number}: {name!r} is in line {names[name]} already",
                "give each learner another name",
            )
        names[name] = number
    if not 1 <= len(names) <= MOST:
        raise CourseError(f"{learners} holds {len(names)} names", f"write 1 to {MOST}, one a line")
    return list(names)


def read_keys(path: Path) -> dict[str, str]:
    """Learners and their keys, from a file that `write_keys` wrote, perhaps with rows added by hand.

    Raises:
        CourseError: it is no such file; names the line.
    """
    fix = "correct that line, name another file with --keys, or replace all keys with --new-keys"
    rows = list(read_cells(path, read_text(path, "name another file with --keys")))
    if not rows or tuple(rows[0][1][:2]) != COLUMNS[:2]:
        raise CourseError(
            f"{path} is no file of keys: its first line does not begin with {','.join(COLUMNS[:2])}",
            "name another file with --keys",
        )
    keys: dict[str, str] = {}
    for number, row in rows[1:]:
        name, key = (cell.strip() for cell in (*row, "", "")[:2])
        if not name or not re.fullmatch(r"tml-[\w-]{8,}", key, re.ASCII):
            raise CourseError(
                f"{path}, line {number}: a row needs a name and a key, tml- and at least 8 letters or digits",
                fix,
            )
        if name in keys or key in keys.values():
            raise CourseError(
                f"{path}, line {number}: this learner or this key is there already, and a shared key shares "
                "everything",
                fix,
            )
        keys[name] = key
    return keys


def write_keys(path: Path, keys: dict[str, str], url: str) -> None:
    """A CSV table with a row a learner, to hand out; this user alone may read it."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    table.writerows([name, key, *lines_to_type(url, key)] for name, key in keys.items())
    write_text(path, text.getvalue(), private=True)


def lines_to_type(url: str, key: str) -> tuple[str, str]:
    """What a learner types before `make lab`. Plain HTTP to another machine has to be allowed."""
    allow = "" if is_loopback(urlsplit(url).hostname or "") else " TINKER_ALLOW_HTTP=1"
    return f"export TINKER_BASE_URL={url}{allow}", f"export TINKER_SERVER_API_KEY={key}"


def typed_address(host: str, address: str = "") -> str:
    """What learners type for this machine.

    Args:
        host: the address to listen on.
        address: the name that the instructor gave, or empty.
    """
    host = address or host
    if host in ("0.0.0.0", "::", ""):  # listens on all addresses, and none of these can be typed
        host = _own_address()
    return f"[{host}]" if ":" in host else host


def _own_address() -> str:
    """The address of the network card that leads outside; this sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return probe.getsockname()[0]
        except OSError:  # no network beyond this machine
            return socket.gethostname()


def _welcome(lesson: Lesson, bases: list[str]) -> str:
    from helpers.stub_tinker.status import TOKEN_FILE

    url, reach = lesson.url, ""
    first, second = lines_to_type(url, "(the key of their row)")
    if is_loopback(lesson.host):
        reach = "\n  only this machine can reach it: `--host 0.0.0.0` lets a network in, over plain HTTP"
    token = lesson.state / TOKEN_FILE
    usual = lesson.state == class_state()
    status = "course stub status" + ("" if usual else f" --state-dir {shlex.quote(str(lesson.state))}")
    return f"""
the class can begin: {url}{reach}
  hand out:     one row of {lesson.keys_file} to each learner, and no other row
  they type:    {first}
                {second}
                and then `make lab` or `course run`, in the same terminal
  they need:    the base model at the same path as here: {", ".join(bases)}
  who is stuck: {url} in a browser; any name, and as password the text in {token};
                or `{status}` on this machine
Ctrl-C ends it, after the work that was accepted. Keys and checkpoints stay: `course serve` goes on with
them."""
