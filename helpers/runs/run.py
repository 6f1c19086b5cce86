"""The run folder: one folder a stage, and a manifest that says what was done with what.

Nothing passes between notebooks but the files in here. `open_stage` (in helpers.runs.stage) opens a run for a
notebook; this module is the folder itself: making it, finding it, reading and changing its manifest.
"""

import contextlib
import difflib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from helpers.data.hub import hub_fingerprint
from helpers.data.records import data_paths, source_name
from helpers.errors import RunError
from helpers.paths import ROOT, package_versions, runs_dir
from helpers.runs.manifest import DataFile, Manifest, now
from helpers.runs.stages import STAGES

RUN_LOCK = "run.lock"
SWEEP_FILE = "sweep.json"  # a folder with it belongs to a sweep and is no run
WRITABLE = "choose a folder you may write to: COURSE_RUNS_DIR=/some/folder"


def new_run(name: str = "", latest: bool = True) -> "Run":
    """Make a run folder and point `runs/latest` at it.

    Args:
        name: letters, digits, `.`, `_` and `-`; empty for the date and time.
        latest: False leaves `runs/latest` as it is: a sweep's runs would fight over it.

    Raises:
        RunError: the name is taken or not allowed, or the folder can't be written.
    """
    check_new_run(name)
    run = Run(_make_folder(name))
    Manifest(name=run.name, created=now(), packages=package_versions()).write(run.manifest_path)
    if latest:
        point_latest_at(run.path)
    return run


def _make_folder(name: str) -> Path:
    stem = name or datetime.now().strftime("%Y%m%d-%H%M%S")
    try:
        runs_dir().mkdir(parents=True, exist_ok=True)
        for attempt in range(1, 1000):
            path = runs_dir() / (stem if attempt == 1 else f"{stem}-{attempt}")
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)  # data and answers are nobody else's business
                return path
            if name:
                break
    except OSError as error:
        raise RunError(f"can't make a run folder in {runs_dir()}: {error.strerror}", WRITABLE) from error
    raise RunError(
        f"a run named {stem!r} exists: {runs_dir() / stem}", "choose another name, or open that run"
    )


def check_new_run(name: str = "") -> None:
    """What `new_run` would refuse, found out without making anything.

    Raises:
        RunError: the name is taken or not allowed, or the folder can't be written.
    """
    if (name and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name)) or name in ("latest", "new"):
        raise RunError(
            f"{name!r} can't name a run", "use letters, digits, '.', '_' and '-', not 'latest' or 'new'"
        )
    folder = runs_dir()
    if name and (folder / name).exists():
        kind = "sweep" if (folder / name / SWEEP_FILE).is_file() else "run"
        raise RunError(
            f"a {kind} named {name!r} exists: {folder / name}", f"choose another name, or open that {kind}"
        )
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        reason = "no permission to write" if there.is_dir() else f"{there} is a file"
        raise RunError(f"can't make a run folder in {folder}: {reason}", WRITABLE)
    latest = folder / "latest"
    if (
        latest.exists() and not latest.is_symlink()
    ):  # for one, a copy of the project in which it became a folder
        raise RunError(
            f"can't point {latest} at the new run: it is no link",
            "move it out of the way; it must be a symbolic link",
        )


def open_run(name: str = "latest") -> "Run":
    """Open a run by name, by path, or the newest one.

    Raises:
        RunError: there is no such run, or its manifest is of another version or damaged.
    """
    path = Path(name) if os.sep in str(name) else runs_dir() / name
    path = path.resolve()
    if not (path / "manifest.json").is_file():
        raise _no_run(name, path)
    run = Run(path)
    _ = run.manifest
    return run


def _no_run(name: str, path: Path) -> RunError:
    if name == "latest":
        return RunError(
            f"there is no run in {runs_dir()} yet", "run notebook 01_split first, or `course run`"
        )
    if (path / SWEEP_FILE).is_file():
        return RunError(
            f"{name} is a sweep, not a run", f"name one of its runs: `course show {name}` lists them"
        )
    others = [other.parent.name for other in runs_dir().glob("[!.]*/manifest.json")]
    near = difflib.get_close_matches(str(name), others)
    fix = f"did you mean {' or '.join(near)}?" if near else "`course list` names them; `course run` makes one"
    return RunError(f"there is no run {name!r} in {runs_dir()}", fix)


def point_latest_at(path: Path) -> None:
    """`latest` is a relative symbolic link, replaced in one step."""
    temporary = path.parent / f".latest.{os.getpid()}.tmp"
    try:
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(path.name)
        os.replace(temporary, path.parent / "latest")
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunError(
            f"can't point {path.parent / 'latest'} at the new run: {error.strerror}",
            "move it out of the way; it must be a symbolic link",
        ) from error


def data_fingerprints(data_files: str) -> list[DataFile]:
    """Path, size and SHA-256 of each data file; a data set on the hub has its `revision` too.

    Args:
        data_files: the setting of notebook 01: paths and data sets, separated by commas, relative to the
            project.
    """
    found = []
    for path in data_paths(data_files, ROOT):
        if isinstance(path, str):
            found.append(DataFile(**hub_fingerprint(path)))
            continue
        row = DataFile(path=source_name(path, ROOT))
        with contextlib.suppress(OSError), open(path, "rb") as file:
            row.bytes, row.sha256 = path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
        found.append(row)
    return found


class Run:
    """One run folder. `run.path` is the folder, `run.manifest` what its manifest says now."""

    def __init__(self, path: Path):
        self.path = path
        self.name = path.name
        self.manifest_path = path / "manifest.json"

    @property
    def manifest(self) -> Manifest:
        return Manifest.read(self.manifest_path)

    def file(self, relative: str) -> Path:
        """A file of this run, by its path in the run folder: `run.file("split/train.json")`."""
        return self.path / relative

    def update(self, **values: Any) -> None:
        """Set entries of the manifest by name: `backend=`, `base_model=`, `seed=`, …"""
        with self.edit() as manifest:
            for name, value in values.items():
                setattr(manifest, name, value)

    def stage(self, name: str) -> Any:
        """The manifest's `StageEntry` of a finished stage: `settings`, `results`, `artefacts`, `seconds`.

        Raises:
            RunError: that stage is not done.
        """
        entry = self.manifest.stages.get(name)
        if entry is None or entry.status != "done":
            status = entry.status if entry else "not started"
            raise RunError(
                f"run {self.name} has no finished '{name}' stage (status: {status})",
                f"run notebooks/{STAGES[name].notebook}.ipynb first",
            )
        return entry

    def take_over(self, name: str, other: "Run") -> None:
        """Copy a finished stage of another run, its executed notebook included, instead of running it here.

        The manifest says `shared_from`, and that it took no time here. Whether the stage would come out the
        same here is for the caller to know.

        Raises:
            RunError: the stage is not done there, or the folder can't be written.
        """
        entry = other.stage(name)
        self._copy_stage(name, other)
        with self.edit() as manifest:
            shared = entry.shared_from or other.name
            copy = entry.model_copy(update={"shared_from": shared, "seconds": 0.0, "work_seconds": {}})
            setattr(manifest.stages, name, copy)
            manifest.seed = other.manifest.seed or manifest.seed

    def _copy_stage(self, name: str, other: "Run") -> None:
        temporary = self.path / f".{name}.tmp"
        notebook = other.file(f"notebooks/{STAGES[name].notebook}.ipynb")
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(self.path / name, ignore_errors=True)
            shutil.copytree(other.path / name, temporary)
            os.replace(temporary, self.path / name)
            self.file("notebooks").mkdir(exist_ok=True)
            if notebook.exists():
                shutil.copy2(notebook, self.file("notebooks"))
        except OSError as error:
            raise RunError(
                f"can't copy {other.path / name} to {self.path}: {error.strerror}",
                "free disk space, or choose a folder you may write to",
            ) from error

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Held by `course run` while it works here, so that a second one, or `course clean`, keeps out.

        Raises:
            RunError: another process holds it, or the folder can't be written.
        """
        lock = FileLock(str(self.path / RUN_LOCK), timeout=0.5)  # `course list` may hold it for a moment
        try:
            lock.acquire()
        except Timeout as error:
            raise RunError(
                f"run {self.name} is under way in another process", "wait for its end, or end it there"
            ) from error
        except OSError as error:
            raise RunError(f"can't write {self.path}: {error.strerror}", WRITABLE) from error
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def edit(self) -> Iterator[Manifest]:
        """The manifest, to change; it is written at the end of the block, if that did not fail.

        Raises:
            RunError: the folder can't be written.
        """
        try:
            with FileLock(str(self.manifest_path) + ".lock", timeout=30):
                manifest = self.manifest
                yield manifest
                manifest.write(self.manifest_path)
        except PermissionError as error:
            raise RunError(f"can't write {self.path}: {error.strerror}", WRITABLE) from error
