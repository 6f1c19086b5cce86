"""`course lab`: JupyterLab at a notebook of the course, with this environment's kernel."""

import difflib
import importlib.util
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from helpers.course import completers
from helpers.course.arguments import add_command
from helpers.course.interrupt import heed_ctrl_c
from helpers.errors import CourseError
from helpers.paths import NOTEBOOKS, ROOT

FIRST = "00_start_here"
JUPYTER_CONFIG = Path(__file__).with_name("jupyter")  # no question about news in front of the first lesson


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "lab",
        lambda options: start_lab(options.notebook, options.port, options.no_browser, options.more),
        "open JupyterLab at a notebook of the course",
        "Starts JupyterLab with this environment's Python and opens it in a browser. Ctrl-C ends it. What "
        "stands after -- are JupyterLab's own options: course lab -- --ip 0.0.0.0",
        "course lab",
        "course lab 02_train --no-browser          # prints the address to open",
    )
    notebook = parser.add_argument(
        "notebook",
        nargs="?",
        default=FIRST,
        metavar="NOTEBOOK",
        help=f"its name, or a path (default: {FIRST})",
    )
    parser.add_argument("--port", type=int, help="port to listen on (default: 8888, or the next free one)")
    parser.add_argument("--no-browser", action="store_true", help="start no browser; print the address")
    completers.offer(notebook, completers.notebooks)


def start_lab(
    notebook: str = FIRST, port: int | None = None, no_browser: bool = False, more: Sequence[str] = ()
) -> int:
    """Become JupyterLab: this process is replaced by it, so that Ctrl-C and its exit status are JupyterLab's
    own.

    Args:
        notebook: a name in notebooks/, its number, or a path.
        port: None for JupyterLab's own choice.
        more: options of JupyterLab.

    Raises:
        CourseError: there is no such notebook, JupyterLab is not installed, or it would refuse to start.
    """
    path = find_notebook(notebook)
    for package in ("jupyterlab", "ipykernel"):
        if importlib.util.find_spec(package) is None:
            raise CourseError(
                f"JupyterLab can't start: {package} is not installed in {sys.prefix}",
                "`make install` installs what the course needs",
            )
    if os.geteuid() == 0 and "--allow-root" not in more:
        raise CourseError(
            "JupyterLab refuses to work for root, since whoever reaches it could do anything on this machine",
            "log in as another user; in a container of your own: course lab -- --allow-root",
        )
    if port is not None:
        _check_port(port)
    folder = ROOT if path.is_relative_to(ROOT) else path.parent
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        f"--ServerApp.root_dir={folder}",
        f"--LabApp.default_url=/lab/tree/{quote(path.relative_to(folder).as_posix())}",
        "--ServerApp.contents_manager_class=helpers.course.lab_files.CourseFiles",
        "--Application.log_level=WARN",
        "--KernelManager.transport_encryption=auto",  # other users of this machine can't listen
        "-y",  # Ctrl-C ends it at once, without a question
        *([f"--ServerApp.port={port}", "--ServerApp.port_retries=0"] if port is not None else []),
        *(["--no-browser"] if no_browser else []),
        *more,
    ]
    heed_ctrl_c()  # what this process ignores, JupyterLab would ignore
    print(f"JupyterLab opens {os.path.relpath(path, ROOT)}; Ctrl-C here ends it", flush=True)
    os.chdir(ROOT)
    environment = os.environ | {
        "JUPYTER_PREFER_ENV_PATH": "1",  # the kernel of this environment, not one in HOME
        "JUPYTER_CONFIG_PATH": os.pathsep.join(
            filter(None, [str(JUPYTER_CONFIG), os.environ.get("JUPYTER_CONFIG_PATH")])
        ),
    }
    os.execve(sys.executable, command, environment)


def find_notebook(name: str) -> Path:
    """The notebook of this name, number or path.

    Raises:
        CourseError: there is none, or more than one; names the near ones.
    """
    if Path(name).suffix == ".ipynb" and Path(name).is_file():
        return Path(name).absolute()
    names = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    found = [stem for stem in names if stem == Path(name).stem or stem.startswith(f"{name}_")]
    if len(found) == 1:
        return NOTEBOOKS / f"{found[0]}.ipynb"
    near = difflib.get_close_matches(Path(name).stem, names) or names
    raise CourseError(f"there is no notebook {name!r}", f"notebooks are {', '.join(near)}")


def _check_port(port: int) -> None:
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        raise CourseError(
            f"JupyterLab can't listen on port {port}: {getattr(error, 'strerror', None) or error}",
            "choose another, or leave out --port: it takes one that is free",
        ) from error
