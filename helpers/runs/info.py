"""A run folder seen from outside: how far it came, how large it is, whether it is damaged.

Runs are read as they lie there. One that was cut short or damaged must be shown as such, so nothing here trusts a manifest
before `manifest_problem` has looked at it.
"""

import json
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from helpers.errors import RunError
from helpers.runs.run import RUN_LOCK, STAGES, SWEEP_FILE, open_run
from helpers.paths import runs_dir

KINDS = {"name": str, "created": str, "packages": dict, "parameters": dict}
STAGE_KINDS = {
    "status": str,
    "parameters": dict,
    "results": dict,
    "seconds": (int, float),
    "summary": str,
    "artefacts": list,
    "data": list,
    "shared_from": str,
}


@dataclass(frozen=True)
class RunInfo:
    """A folder in the runs folder, seen from outside.

    Attributes:
        manifest: what its manifest says; empty if `problem` is set.
        problem: why it can't be read, or None.
        bytes: size on disk of all that is in it; links are counted, not followed.
        changed: when something in it last changed, in seconds since 1970.
        latest: whether `latest` points to it.
    """

    path: Path
    manifest: dict[str, Any] = field(repr=False)
    problem: str | None
    bytes: int
    changed: float
    latest: bool

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def created(self) -> datetime:
        """When the run was made; when it last changed, if the manifest does not say."""
        if self.manifest:
            return parse_time(self.manifest["created"])
        return datetime.fromtimestamp(self.changed, UTC)

    @property
    def statuses(self) -> dict[str, str]:
        """The status of each stage that was begun, in order."""
        stages = self.manifest.get("stages", {})
        return {stage: stages[stage]["status"] for stage in STAGES if stage in stages}

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
            return f"damaged: {self.problem}"
        if is_sweep(self.path):
            return "table and plot of a sweep"
        words = {"started": "under way" if self.state == "under way" else "not finished", "stale": "stale"}
        other = [
            f"{stage} {words.get(status, status)}"
            for stage, status in self.statuses.items()
            if status != "done"
        ]
        return ", ".join([f"{len(self.statuses) - len(other)} of {len(STAGES)}", *other])

    def accuracy(self, name: str) -> float | None:
        """`base_accuracy` or `test_accuracy` of notebook 03; None if it is not done, or stale."""
        entry = self.manifest.get("stages", {}).get("evaluate", {})
        value = entry.get("results", {}).get(name) if entry.get("status") == "done" else None
        return value if isinstance(value, (int, float)) else None


def manifest_problem(manifest: Any) -> str | None:
    """What is wrong with the form of a manifest, or None: after that, its entries can be used without looking."""
    if not isinstance(manifest, dict) or not isinstance(manifest.get("stages"), dict):
        return "manifest.json lists no stages"
    for name, kind in KINDS.items():
        if name in manifest and not isinstance(manifest[name], kind):
            return f"manifest.json has no usable '{name}'"
    try:
        parse_time(manifest["created"])
    except (KeyError, ValueError):
        return "manifest.json has no usable 'created'"
    for stage, entry in manifest["stages"].items():
        if not isinstance(entry, dict) or "status" not in entry:
            return f"manifest.json has no usable stage '{stage}'"
        for name, kind in STAGE_KINDS.items():
            if name in entry and not isinstance(entry[name], kind):
                return f"manifest.json has no usable '{name}' of stage '{stage}'"
        if not all(isinstance(path, str) for path in entry.get("artefacts", [])):
            return f"manifest.json has no usable 'artefacts' of stage '{stage}'"
    return None


def parse_time(text: str) -> datetime:
    when = datetime.fromisoformat(text)
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def find_runs() -> list[RunInfo]:
    """All runs, newest first. Folders without a manifest or its lock file are not runs; links are not followed.

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
    return [RunInfo(path, {}, None, *size_and_change(path), latest=False) for path in paths]


def look_at(path: Path) -> RunInfo:
    """What is in one run folder."""
    manifest, problem = {}, None
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        problem = manifest_problem(manifest)
    except FileNotFoundError:
        problem = "manifest.json is missing"
    except (OSError, ValueError, RecursionError):
        problem = "manifest.json can't be read"
    size, changed = size_and_change(path)
    return RunInfo(path, {} if problem else manifest, problem, size, changed, latest_name() == path.name)


def latest_name() -> str | None:
    """The name that `latest` points to, whether it is there or not; None if `latest` is no link."""
    link = runs_dir() / "latest"
    return os.path.basename(os.readlink(link)) if link.is_symlink() else None


def is_under_way(path: Path) -> bool:
    """Whether a `course run` works in this run folder now. Makes no file."""
    from filelock import FileLock, Timeout

    if not (path / RUN_LOCK).is_file():
        return False
    try:
        with FileLock(str(path / RUN_LOCK), timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False


def size_and_change(path: Path) -> tuple[int, float]:
    """Bytes of all files below a path, and its newest change in seconds since 1970. Links are not followed."""
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
        RunError: there is no such run, or it is damaged.
    """
    folder = runs_dir() / name
    run = look_at(
        folder
        if os.path.lexists(folder / "manifest.json.lock") and not folder.is_symlink()
        else open_run(name).path
    )
    if run.problem:
        raise RunError(f"run {run.name} is damaged: {run.problem}", f"`course clean {run.name}` deletes it")
    return run


def summary(run: RunInfo) -> dict[str, Any]:
    """A run as JSON: what `course list --json` gives for each."""
    return {
        "name": run.name,
        "path": str(run.path),
        "created": run.created.isoformat(timespec="seconds"),
        "latest": run.latest,
        "state": run.state,
        "problem": run.problem,
        "stages": run.statuses,
        "base_accuracy": run.accuracy("base_accuracy"),
        "test_accuracy": run.accuracy("test_accuracy"),
        "bytes": run.bytes,
    }




