"""`course clean`: delete runs, after showing which, and never anything else.

A run is renamed to a hidden folder beside it, and then deleted from there. So a run is whole or gone: what an
interrupted deletion leaves is hidden, and the next `course clean` offers to end it.
"""

import contextlib
import difflib
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.course import completers
from helpers.course.arguments import add_command
from helpers.errors import RunError, UsageError
from helpers.paths import runs_dir
from helpers.text import plural, printable, size_text

if TYPE_CHECKING:
    from helpers.runs.info import RunInfo

HIDDEN = ".deleting-"
DAY = 86400.0


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "clean",
        lambda options: clean_runs(options.runs, options.older_than, options.yes),
        "delete runs, after asking",
        "Show what would go, with sizes, and ask. Only run folders in the runs folder are deleted, and "
        "links are never followed. A run that is under way is refused. If the newest run goes, runs/latest "
        "names the one before it. Checkpoints on the Tinker server stay. The name of a sweep stands for all "
        "of its runs, its table and its plot.",
        "course clean my-run other-run",
        "course clean --older-than 30           # all in which nothing changed for 30 days",
        "course clean my-run --yes              # without asking",
    )
    runs = parser.add_argument("runs", nargs="*", metavar="RUN|SWEEP", help="names of runs or sweeps")
    parser.add_argument(
        "--older-than",
        type=float,
        metavar="DAYS",
        help="only runs in which nothing changed for that many days; without names, of all runs",
    )
    parser.add_argument("--yes", action="store_true", help="don't ask; needed where there is no terminal")
    completers.offer(runs, completers.runs_and_sweeps)


def clean_runs(names: list[str], older_than: float | None = None, yes: bool = False) -> int:
    """Show what would go, ask, delete.

    Args:
        names: runs in the runs folder; empty for all that are old enough.
        older_than: only runs in which nothing changed for that many days. Damaged runs go by name only.
        yes: don't ask.

    Returns:
        The exit status: 0, or 1 if the answer was no.

    Raises:
        UsageError: neither names nor days are given, or there is no terminal to ask on.
        RunError: a name is no run here, a run is under way, or a folder can't be deleted.
    """
    left_over = interrupted_deletions()
    if not names and older_than is None and not left_over:
        raise UsageError(
            "which runs? none is named", "name them (`course list` does), or say --older-than DAYS"
        )
    if older_than is not None and not older_than >= 0:
        raise UsageError(f"--older-than {older_than:g}", "give a number of days, 0 or more")
    chosen = _chosen(names, older_than) if names or older_than is not None else []
    if not chosen and not left_over:
        print("nothing to delete: no run matches")
        return 0
    for run in chosen:
        _check_idle(run)
    total = _show(chosen, left_over)
    if not yes and not _agreed():
        print("nothing was deleted")
        return 1
    hidden: list[Path] = []
    try:
        for run in chosen:  # all are out of sight before the first file goes
            hidden.append(_hide(run))
    finally:
        correct_latest()
        for folder in [*left_over, *hidden]:
            _delete(folder)
    print(f"deleted {plural(len(hidden) + len(left_over), 'folder')}, {size_text(total)}")
    return 0


def _chosen(names: list[str], older_than: float | None) -> "list[RunInfo]":
    """The runs that are named, or all, as far as they are old enough. A sweep's name stands for its runs and
    its own folder.

    Raises:
        RunError: a name is no run in the runs folder.
    """
    from helpers.runs.info import find_runs, find_sweeps, latest_name

    sweeps = {sweep.name for sweep in find_sweeps()}
    runs = [*find_runs(), *find_sweeps()]
    by_name = {run.name: run for run in runs}
    chosen = runs
    if names:
        wanted = dict.fromkeys(
            latest_name() or name if name == "latest" else name.rstrip("/") for name in names
        )
        of_sweeps = [run.name for run in runs if run.found and run.found.sweep in sweeps & wanted.keys()]
        wanted |= dict.fromkeys(of_sweeps)
        for name in wanted:
            if name not in by_name:
                raise _no_such_run(name, list(by_name))
        chosen = [by_name[name] for name in wanted]
    if older_than is not None:
        border = time.time() - older_than * DAY
        chosen = [run for run in chosen if run.changed <= border]
        if not names:
            for run in chosen:
                if run.problem:
                    words = f"left out: {run.name} can't be used ({run.problem}): name it to delete it"
                    print(printable(words))
            chosen = [run for run in chosen if not run.problem]
    return chosen


def _no_such_run(name: str, known: list[str]) -> RunError:
    folder = runs_dir()
    if (folder / name).is_symlink():
        return RunError(
            f"{name} in {folder} is a link, not a run",
            "delete the link by hand if you don't want it; what it points to stays",
        )
    near = difflib.get_close_matches(name, known)
    return RunError(
        f"there is no run {name!r} in {folder}",
        f"did you mean {' or '.join(near)}?" if near else "`course list` names them",
    )


def interrupted_deletions() -> list[Path]:
    """Hidden folders that an interrupted `course clean` left."""
    folder = runs_dir()
    return (
        sorted(path for path in folder.glob(f"{HIDDEN}*") if path.is_dir() and not path.is_symlink())
        if folder.is_dir()
        else []
    )


def _check_idle(run: "RunInfo") -> None:
    from helpers.runs.info import is_under_way

    if is_under_way(run.path):
        raise RunError(f"run {run.name} is under way in another process", "wait for its end, or end it there")


def _show(chosen: "list[RunInfo]", left_over: list[Path]) -> int:
    """Print what would go. Returns its size in bytes."""
    from helpers.runs.info import size_and_change

    print(f"to delete from {runs_dir()}:")
    lines = [(run.name, run.bytes, run.progress + (", latest" if run.latest else "")) for run in chosen]
    lines += [(path.name, size_and_change(path)[0], "rest of an interrupted deletion") for path in left_over]
    width = max(len(name) for name, _, _ in lines)
    for name, size, words in lines:
        print(printable(f"  {name.ljust(width)}  {size_text(size):>7}  {words}"))
    total = sum(size for _, size, _ in lines)
    print(f"{plural(len(lines), 'folder')}, {size_text(total)}; checkpoints on the Tinker server stay")
    return total


def _agreed() -> bool:
    """Ask on the terminal; anything but `y` or `yes` is a no.

    Raises:
        UsageError: there is no terminal.
    """
    if not (sys.stdin and sys.stdin.isatty()):
        raise UsageError("there is no terminal to ask on, so nothing was deleted", "add --yes")
    try:
        return input("delete? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _hide(run: "RunInfo") -> Path:
    """Rename a run, in one step, to a hidden name in the same folder.

    Raises:
        RunError: it is under way, is no folder of the runs folder any more, or can't be renamed.
    """
    path = run.path
    if path.parent != runs_dir() or path.is_symlink() or not path.is_dir():
        raise RunError(f"{path} is no run folder any more", "see `course list`")
    _check_idle(run)
    hidden = path.with_name(f"{HIDDEN}{path.name}-{os.getpid()}")
    try:
        path.rename(hidden)
    except OSError as error:
        raise RunError(f"can't delete {path}: {error.strerror}", "see who owns the folder") from error
    return hidden


def _delete(folder: Path) -> None:
    """Delete a hidden folder. `rmtree` removes links themselves, never what they point to.

    Raises:
        RunError: part of it can't be deleted.
    """
    try:
        while folder.exists():
            with contextlib.suppress(
                FileNotFoundError
            ):  # another `course clean` was faster with a file: go on
                shutil.rmtree(folder)
    except OSError as error:
        raise RunError(
            f"can't delete all of {folder}: {error.strerror} ({error.filename})",
            "see who owns it, then run `course clean` again: it ends what was begun",
        ) from error


def correct_latest() -> None:
    """Let `latest` point to the newest run again if its run is gone; remove it if there is none."""
    from helpers.runs.info import find_runs
    from helpers.runs.run import point_latest_at

    link = runs_dir() / "latest"
    if not link.is_symlink() or link.exists():
        return
    whole = [run for run in find_runs() if not run.problem]
    if whole:
        point_latest_at(whole[0].path)
        print(f"latest is {whole[0].name} now")
    else:
        link.unlink(missing_ok=True)
