"""A run folder seen from outside: how far it came, how large it is, whether it can be read.

`course list`, `show`, `report`, `clean` and sweeps see runs through here. A run that was cut short, damaged,
or made by another version of the course is shown as such.
"""

import fcntl
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from helpers.errors import RunError
from helpers.evaluate.tasks import Task
from helpers.paths import runs_dir
from helpers.runs.manifest import EvaluateResults, Manifest
from helpers.runs.run import RUN_LOCK, SWEEP_FILE, open_run
from helpers.runs.stages import STAGES


@dataclass(frozen=True)
class RunInfo:
    """A folder in the runs folder, seen from outside.

    Attributes:
        problem: why its manifest can't be used, or None.
        bytes: size on disk of all that is in it; links are counted, not followed.
        changed: when something in it last changed, in seconds since 1970.
        latest: whether `latest` points to it.
    """

    path: Path
    problem: str | None
    bytes: int
    changed: float
    latest: bool
    found: Manifest | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def manifest(self) -> Manifest:
        """What its manifest says.

        Raises:
            RunError: it can't be used.
        """
        if self.found is None:
            raise RunError(
                f"run {self.name} can't be used: {self.problem}", f"`course clean {self.name}` deletes it"
            )
        return self.found

    @property
    def created(self) -> datetime:
        """When the run was made; when it last changed, if the manifest does not say."""
        return self.found.created if self.found else datetime.fromtimestamp(self.changed, UTC)

    @property
    def statuses(self) -> dict[str, str]:
        """The status of each stage that was begun, in order."""
        return {name: entry.status for name, entry in self.found.stages.items()} if self.found else {}

    @property
    def state(self) -> str:
        """`damaged`, `under way`, `complete` or `unfinished`."""
        if self.problem:
            return "damaged"
        if is_under_way(self.path):
            return "under way"
        done = [stage for stage, status in self.statuses.items() if status == "done"]
        return "complete" if len(done) == len(STAGES) else "unfinished"

    @property
    def progress(self) -> str:
        """The stages in a few words: `6 of 6`, or `1 of 6, train not finished`."""
        if self.problem:
            return self.problem
        if is_sweep(self.path):
            return "table and plot of a sweep"
        words = {"started": "under way" if self.state == "under way" else "not finished", "stale": "stale"}
        other = [f"{stage} {words[status]}" for stage, status in self.statuses.items() if status != "done"]
        return ", ".join([f"{len(self.statuses) - len(other)} of {len(STAGES)}", *other])

    @property
    def task(self) -> Task:
        """What makes an answer right, and so what its scores are called."""
        return self.found.task if self.found else Task()

    @property
    def evaluated(self) -> EvaluateResults | None:
        """What notebook 03 found; None if it is not done, or stale."""
        return self.found.evaluated if self.found else None

    @property
    def flag(self) -> str:
        """A warning if the scores say little about being right; else empty."""
        return self.found.flag if self.found else ""


def find_runs() -> list[RunInfo]:
    """All runs, newest first. Folders without a manifest or its lock file are not runs; links are not
    followed.

    Raises:
        RunError: the runs folder can't be read.
    """
    folder = runs_dir()
    try:
        entries = sorted(folder.iterdir()) if folder.exists() else []
    except OSError as error:
        raise RunError(
            f"can't read {folder}: {error.strerror}", "choose another folder: COURSE_RUNS_DIR=/some/folder"
        ) from error
    names = ("manifest.json", "manifest.json.lock")
    runs = [
        look_at(path)
        for path in entries
        if not path.name.startswith(".")
        and not path.is_symlink()
        and any(os.path.lexists(path / name) for name in names)
    ]
    return sorted(runs, key=lambda run: (run.created, run.name), reverse=True)


def is_sweep(path: Path) -> bool:
    """Whether a folder is a sweep's own, with its table and plot: no run."""
    return (path / SWEEP_FILE).is_file() and not path.is_symlink()


def find_sweeps() -> list[RunInfo]:
    """The folders of sweeps, by name. Seen as runs without a manifest and without a problem."""
    folder = runs_dir()
    paths = (
        sorted(path for path in folder.iterdir() if not path.name.startswith(".") and is_sweep(path))
        if folder.is_dir()
        else []
    )
    return [RunInfo(path, None, *size_and_change(path), latest=False) for path in paths]


def look_at(path: Path) -> RunInfo:
    """What is in one run folder."""
    manifest, problem = None, None
    try:
        manifest = Manifest.read(path / "manifest.json")
    except RunError as error:
        problem = error.what
    return RunInfo(path, problem, *size_and_change(path), latest_name() == path.name, manifest)


def latest_name() -> str | None:
    """The name that `latest` points to, whether it is there or not; None if `latest` is no link."""
    link = runs_dir() / "latest"
    return os.path.basename(os.readlink(link)) if link.is_symlink() else None


def is_under_way(path: Path) -> bool:
    """Whether a `course run` works in this run folder now. Makes no file."""
    try:
        with open(path / RUN_LOCK) as lock:  # to read: that is enough, and the folder may be another user's
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, PermissionError):  # none, or not for us to see
        return False
    except BlockingIOError:
        return True
    return False


def size_and_change(path: Path) -> tuple[int, float]:
    """Bytes of all files below a path, and the newest change in seconds since 1970. No link is followed."""
    total, newest = 0, 0.0
    for folder, folders, files in os.walk(path):
        for name in [".", *files, *(name for name in folders if os.path.islink(os.path.join(folder, name)))]:
            try:
                entry = os.lstat(os.path.join(folder, name))
            except OSError:  # gone since
                continue
            total += entry.st_size if name != "." else 0
            newest = max(newest, entry.st_mtime)
    return total, newest


def readable_run(name: str) -> RunInfo:
    """The run of this name or path, if its manifest can be used.

    Raises:
        RunError: there is no such run, or it can't be read.
    """
    folder = runs_dir() / name
    half_made = os.path.lexists(folder / "manifest.json.lock") and not folder.is_symlink()
    run = look_at(folder if half_made else open_run(name).path)
    _ = run.manifest
    return run


def summary(run: RunInfo) -> dict[str, Any]:
    """A run as JSON: what `course list --json` gives for each."""
    found = run.evaluated
    return {
        "name": run.name,
        "path": str(run.path),
        "created": run.created.isoformat(timespec="seconds"),
        "latest": run.latest,
        "state": run.state,
        "problem": run.problem,
        "stages": run.statuses,
        "measure": run.task.measure if found else None,
        "base_accuracy": found.base_accuracy if found else None,
        "base_mean_f1": found.base_mean_f1 if found else None,
        "base_prompting": found.base_prompting if found else None,
        "test_accuracy": found.test_accuracy if found else None,
        "test_mean_f1": found.test_mean_f1 if found else None,
        "flag": run.flag,
        "bytes": run.bytes,
    }
