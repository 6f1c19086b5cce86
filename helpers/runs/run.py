"""The run folder: one folder a stage, and a manifest that says what was done with what.

Nothing passes between notebooks but the files in here.

    run = new_run()                                   # in 01_split; later notebooks: open_run("latest")
    stage = run.begin("train", {"rank": 32})          # checks that the stages before are done
    with stage.timed("training"):
        ...
    stage.finish("NLL 0.04 after 48 steps", train_nll=0.04)
"""

from helpers.paths import ROOT, package_versions, runs_dir
import contextlib
import difflib
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from helpers.errors import RunError
from helpers.files import read_json, write_json
from helpers.data.hub import hub_fingerprint
from helpers.data.records import data_paths, source_name


# stage: (its notebook, the stages whose files it reads)
STAGES = {
    "split": ("01_split", ()),
    "train": ("02_train", ("split",)),
    "evaluate": ("03_evaluate", ("split", "train")),
    "export": ("04_export", ("train",)),
    "merge": ("05_merge", ("split", "export")),
    "vllm": ("06_vllm_inference", ("split", "merge")),
}

RUN_LOCK = "run.lock"
SWEEP_FILE = "sweep.json"  # in the runs folder, a folder with it belongs to a sweep and is no run






def data_fingerprints(data_files: str) -> list[dict[str, Any]]:
    """Path, size and SHA-256 of each data file; size and hash are None where it can't be read. A data set has its `revision` too.

    Args:
        data_files: the parameter of notebook 01: paths and data sets separated by commas, relative paths from the project's folder.
    """
    found = []
    for path in data_paths(data_files, ROOT):
        if isinstance(path, str):
            found.append(hub_fingerprint(path))
            continue
        row: dict[str, Any] = {"path": source_name(path, ROOT), "bytes": None, "sha256": None}
        with contextlib.suppress(OSError), open(path, "rb") as file:
            row |= {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        found.append(row)
    return found


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def new_run(name: str = "", latest: bool = True) -> "Run":
    """Make a run folder and point `runs/latest` at it.

    Args:
        name: letters, digits, `.`, `_` and `-`; empty for the date and time.
        latest: False leaves `runs/latest` as it is: a sweep's runs would fight over it.

    Raises:
        RunError: the name is taken or not allowed, or the folder can't be written.
    """
    check_new_run(name)
    stem = name or datetime.now().strftime("%Y%m%d-%H%M%S")
    try:
        runs_dir().mkdir(parents=True, exist_ok=True)
        for attempt in range(1, 1000):
            path = runs_dir() / (stem if attempt == 1 else f"{stem}-{attempt}")
            try:
                path.mkdir()
                break
            except FileExistsError:
                if name:
                    raise RunError(
                        f"a run named {name!r} exists: {path}", "choose another name, or open that run"
                    ) from None
    except OSError as error:
        raise RunError(
            f"can't make a run folder in {runs_dir()}: {error.strerror}",
            "choose a folder you may write to: COURSE_RUNS_DIR=/some/folder",
        ) from error
    run = Run(path)
    write_json(
        run.manifest_path, {"name": path.name, "created": now(), "packages": package_versions(), "stages": {}}
    )
    if latest:
        point_latest_at(path)
    return run


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
        raise RunError(
            f"can't make a run folder in {folder}: {reason}",
            "choose a folder you may write to: COURSE_RUNS_DIR=/some/folder",
        )
    latest = folder / "latest"
    if (
        latest.exists() and not latest.is_symlink()
    ):  # for one, a copy of the project in which it became a folder
        raise RunError(
            f"can't point {latest} at the new run: it is no link",
            "move what is there out of the way; it must be a symbolic link",
        )


def open_run(name: str = "latest") -> "Run":
    """Open a run by name, by path, or the newest one.

    Raises:
        RunError: there is no such run.
    """
    path = Path(name) if os.sep in str(name) else runs_dir() / name
    path = path.resolve()
    if not (path / "manifest.json").is_file():
        if name == "latest":
            raise RunError(
                f"there is no run in {runs_dir()} yet", "run notebook 01_split first, or `course run`"
            )
        if (path / SWEEP_FILE).is_file():
            raise RunError(
                f"{name} is a sweep, not a run", f"name one of its runs: `course show {name}` lists them"
            )
        near = difflib.get_close_matches(
            str(name), [other.parent.name for other in runs_dir().glob("[!.]*/manifest.json")]
        )
        fix = (
            f"did you mean {' or '.join(near)}?"
            if near
            else "`course list` names them; `course run` makes one"
        )
        raise RunError(f"there is no run {name!r} in {runs_dir()}", fix)
    return Run(path)


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
            "move what is there out of the way; it must be a symbolic link",
        ) from error


class Run:
    """One run folder. `run.path` is the folder, `run.manifest` what its manifest says now."""

    def __init__(self, path: Path):
        self.path = path
        self.name = path.name
        self.manifest_path = path / "manifest.json"

    @property
    def manifest(self) -> dict[str, Any]:
        return read_json(self.manifest_path)

    def file(self, relative: str) -> Path:
        """A file of this run, by its path in the run folder: `run.file("split/train.json")`."""
        return self.path / relative

    def update(self, **values: Any) -> None:
        """Set top-level manifest entries (`backend=`, `base_model=`, `seed=`)."""
        with self._edit() as manifest:
            manifest.update(values)

    def stage(self, name: str) -> dict[str, Any]:
        """What the manifest holds of a finished stage: `parameters`, `results`, `artefacts`, `seconds`.

        Raises:
            RunError: that stage is not done.
        """
        entry = self.manifest["stages"].get(name, {})
        if entry.get("status") != "done":
            notebook = STAGES[name][0]
            raise RunError(
                f"run {self.name} has no finished '{name}' stage (status: {entry.get('status', 'not started')})",
                f"run notebooks/{notebook}.ipynb first",
            )
        return entry

    def begin(self, name: str, parameters: dict[str, Any]) -> "Stage":
        """Start a stage: check what it needs, make its folder, record its parameters.

        Later stages that were done become `stale`: their files came from what this stage is about to replace. Data files
        are recorded with size and hash, so that `course run --like` can say whether they are still the same.

        Raises:
            RunError: a stage before it is missing or stale, or the folder can't be written.
        """
        for needed in STAGES[name][1]:
            self.stage(needed)
        folder = self.path / name
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise RunError(
                f"can't write {folder}: {error.strerror}", "choose a folder you may write to"
            ) from error
        stale = {name}
        for later, (_, needs) in STAGES.items():
            if stale & set(needs):
                stale.add(later)
        with self._edit() as manifest:
            for other in stale - {name}:
                if manifest["stages"].get(other, {}).get("status") == "done":
                    manifest["stages"][other]["status"] = "stale"
            manifest["stages"][name] = {"status": "started", "started": now(), "parameters": parameters}
            if "data_files" in parameters:
                manifest["stages"][name]["data"] = data_fingerprints(parameters["data_files"])
        return Stage(self, name, folder)

    def take_over(self, name: str, other: "Run") -> None:
        """Copy a finished stage of another run, its executed notebook included, in place of doing it here.

        The manifest says `shared_from`, and that it took no time here. Whether the stage would come out the same here is for
        the caller to know.

        Raises:
            RunError: the stage is not done there, its data files have changed since, or the folder can't be written.
        """
        entry = other.stage(name)
        data = entry.get("data", [])
        if "data_files" in entry["parameters"] and data != data_fingerprints(
            entry["parameters"]["data_files"]
        ):
            raise RunError(
                f"the data files changed since run {other.name} was split: {', '.join(row['path'] for row in data)}",
                "get the old files back, or start anew under another name",
            )
        temporary = self.path / f".{name}.tmp"
        notebook = f"{STAGES[name][0]}.ipynb"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(self.path / name, ignore_errors=True)
            shutil.copytree(other.path / name, temporary)
            os.replace(temporary, self.path / name)
            self.file("notebooks").mkdir(exist_ok=True)
            if other.file(f"notebooks/{notebook}").exists():
                shutil.copy2(other.file(f"notebooks/{notebook}"), self.file("notebooks"))
        except OSError as error:
            raise RunError(
                f"can't copy {other.path / name} to {self.path}: {error.strerror}",
                "free disk space, or choose a folder you may write to",
            ) from error
        with self._edit() as manifest:
            manifest["stages"][name] = entry | {
                "shared_from": entry.get("shared_from", other.name),
                "seconds": 0.0,
                "work_seconds": {},
            }
            if "seed" in other.manifest:
                manifest["seed"] = other.manifest["seed"]

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
            raise RunError(
                f"can't write {self.path}: {error.strerror}", "choose a folder you may write to"
            ) from error
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def _edit(self) -> Iterator[dict[str, Any]]:
        try:
            with FileLock(str(self.manifest_path) + ".lock", timeout=30):
                manifest = self.manifest
                yield manifest
                write_json(self.manifest_path, manifest)
        except PermissionError as error:
            raise RunError(
                f"can't write {self.path}: {error.strerror}", "choose a folder you may write to"
            ) from error


class Stage:
    """A stage that is under way: its folder, its clock, and how it ends."""

    def __init__(self, run: Run, name: str, folder: Path):
        self.run, self.name, self.path = run, name, folder
        self._started = time.monotonic()
        self._work: dict[str, float] = {}

    def file(self, name: str) -> Path:
        return self.path / name

    @contextlib.contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Count the time inside as `kind`: training, sampling, merging or vllm."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._work[kind] = self._work.get(kind, 0.0) + time.monotonic() - start

    def finish(self, summary: str, artefacts: list[Path] = (), **results: Any) -> None:
        """Mark the stage done.

        Args:
            summary: the key result in a few words, shown in the table at the end of `course run`.
            artefacts: files or folders of this run to list in the manifest, the one a reader wants first at the head.
            results: numbers and names that later stages or readers want, kept in the manifest.

        Raises:
            RunError: an artefact is not there.
        """
        missing = [str(path) for path in artefacts if not Path(path).exists()]
        if missing:
            raise RunError(
                f"stage '{self.name}' did not write {', '.join(missing)}",
                "run its notebook again from the top",
            )
        with self.run._edit() as manifest:
            manifest["stages"][self.name].update(
                status="done",
                finished=now(),
                seconds=round(time.monotonic() - self._started, 1),
                work_seconds={kind: round(seconds, 1) for kind, seconds in self._work.items()},
                summary=summary,
                results=results,
                artefacts=[str(Path(path).resolve().relative_to(self.run.path)) for path in artefacts],
            )
