"""Checkpoints on disk. What was reported survives a kill at any moment; nothing half-written is ever seen.

    STATE/runs/RUN/run.json
    STATE/runs/RUN/{weights,sampler_weights,external_weights}/NAME/
        checkpoint.json  adapter_model.safetensors  adapter_config.json  [optimizer.safetensors]

A checkpoint is written to `.tmp-…` beside its place, synced, and renamed. One that is overwritten waits as
`.old-NAME` until the new one is in place; a start after a kill puts it back. A file that can't be read is
skipped, with a line in the log.
"""

import os
import shutil
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError

from helpers.stub_tinker import disk
from helpers.stub_tinker.budgets import DiskUse
from helpers.stub_tinker.disk import check_name, now, writing
from helpers.stub_tinker.errors import StoreError

KINDS = {"weights": "training", "sampler_weights": "sampler", "external_weights": "external"}
MAX_TTL = 10 * 365 * 86400
ADAPTER_FIELDS = {
    "base_model": str,
    "lora_rank": int,
    "train_attn": bool,
    "train_mlp": bool,
    "train_unembed": bool,
}
RUN_FIELDS = {"owner": str, "created": str, **ADAPTER_FIELDS}
CHECKPOINT_FIELDS = {"time": str, "files": dict}
OF_ONE_PLACE = ("public", "id", "time", "expires_at", "files")  # details that a copy does not take along
RENDERER_NAME = (
    "renderer_name"  # in a run's `user_metadata`; of the cookbook: tinker_cookbook.checkpoint_utils
)


class Checkpoint(NamedTuple):
    """What `Store.load` reads: weights, Adam's state (empty if not saved), checkpoint.json and run.json."""

    weights: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    details: dict
    run: dict


def format_of(run: dict) -> dict[str, str]:
    """The prompt format that a run says it was trained in, as `user_metadata`; empty if it says none."""
    name = (run.get("user_metadata") or {}).get(RENDERER_NAME)
    return {} if name is None else {RENDERER_NAME: name}


def parse_path(path: str) -> tuple[str, str, str]:
    """`tinker://RUN/KIND/NAME` as (run, kind, name).

    Raises:
        StoreError: it is no such path.
    """
    parts = path.removeprefix("tinker://").split("/") if path.startswith("tinker://") else []
    if len(parts) != 3 or parts[1] not in KINDS:
        raise StoreError(
            f"{path!r} is no checkpoint path: expected tinker://RUN/weights/NAME, "
            "with sampler_weights or external_weights as other kinds"
        )
    return parts[0], parts[1], parts[2]


def _expiry(ttl: int | None) -> str | None:
    """The time at which something with this many seconds to live ends; None for never.

    Raises:
        StoreError: it is not a number of seconds up to ten years.
    """
    if ttl is None:
        return None
    if isinstance(ttl, bool) or not isinstance(ttl, int) or not 1 <= ttl <= MAX_TTL:
        raise StoreError(
            f"ttl_seconds must be a whole number of seconds from 1 to {MAX_TTL} (ten years), got {ttl!r}"
        )
    return (now() + timedelta(seconds=ttl)).isoformat()


class Store:
    """All training runs and checkpoints under one state folder, for the threads of one process.

    Args:
        use: of the disk; without limits if None.
    """

    def __init__(self, folder: Path, records: disk.Records | None = None, use: DiskUse | None = None):
        self.runs = folder / "runs"
        self._use = use or DiskUse()
        self._use.counts.append(self._bytes_by_owner)
        self._lock = threading.RLock()  # of renames, so that nobody reads between the two of an overwrite
        self._records = records or disk.Records()
        self.runs.mkdir(parents=True, exist_ok=True)
        self._tidy()

    def _tidy(self) -> None:
        """Finish or undo what a kill interrupted."""
        for old in self.runs.glob("*/*/.old-*"):
            target = old.with_name(old.name.removeprefix(".old-"))
            if target.exists():
                disk.remove(old)
            else:
                os.replace(old, target)
        for left in [*self.runs.glob("*/*/.tmp-*"), *self.runs.glob(".tmp-*")]:
            shutil.rmtree(left, ignore_errors=True)
        for left in [*self.runs.glob("*/.*.tmp"), *self.runs.glob("*/*/*/.*.tmp")]:
            left.unlink(missing_ok=True)

    def _run_folder(self, run: str) -> Path:
        return self.runs / check_name(run, "training run")

    def _folder(self, run: str, kind: str, name: str) -> Path:
        return self._run_folder(run) / kind / check_name(name, "checkpoint")

    # Training runs

    def _bytes_by_owner(self) -> Counter[str]:
        used: Counter[str] = Counter()
        for path in self.runs.glob("[!.]*/run.json"):
            if info := self._run(path.parent.name):
                sizes = [row["size_bytes"] for row in self._checkpoints(info, info["owner"])]
                used[info["owner"]] += disk.BLOCK * (1 + len(sizes)) + sum(sizes)
        return used

    def create_run(self, run: str, info: dict) -> None:
        folder = self._run_folder(run)
        self._use.take(info["owner"], disk.BLOCK)
        with writing(f"training run {run}"):
            folder.mkdir(parents=True, exist_ok=True)
            record = {**info, "training_run_id": run, "created": now().isoformat()}
            disk.write_json(folder / "run.json", record)
            disk.sync(self.runs)

    def _run(self, run: str) -> dict | None:
        info = self._records.read(self._run_folder(run) / "run.json", RUN_FIELDS)
        return info and {**info, "training_run_id": run}

    def _sees(self, info: dict, owner: str, accessible: bool) -> bool:
        return info["owner"] == owner or (accessible and any(self._checkpoints(info, owner)))

    def run_info(self, run: str, owner: str, accessible: bool = False) -> dict:
        """What is known of a run.

        Args:
            accessible: another owner's run will do if a checkpoint of it is published.

        Raises:
            StoreError: there is none of that name for this owner.
        """
        info = self._run(run)
        if info is None or not self._sees(info, owner, accessible):
            raise StoreError(f"there is no training run {run!r}", 404)
        return info

    def list_runs(self, owner: str, accessible: bool = False) -> list[dict]:
        """This owner's runs, newest first; with `accessible`, also others' with a published checkpoint."""
        infos = [info for path in self.runs.glob("[!.]*/run.json") if (info := self._run(path.parent.name))]
        seen = [info for info in infos if self._sees(info, owner, accessible)]
        return sorted(seen, key=lambda info: info["created"], reverse=True)

    # Checkpoints

    def save(
        self,
        run: str,
        kind: str,
        name: str,
        files: dict[str, Any],
        details: dict,
        ttl: int | None,
        overwrite: bool,
    ) -> str:
        """Write one checkpoint; when this returns it survives a crash.

        Args:
            files: by file name: tensors (a dict, stored as safetensors), bytes, or a file to copy.
            details: kept in checkpoint.json.
            ttl: seconds until it may be deleted; None for ever.

        Returns:
            Its tinker path.

        Raises:
            StoreError: the name is taken or not allowed, or the disk refused.
            BadRequest: its owner has too much on disk.
        """
        target = self._folder(run, kind, name)
        expires = _expiry(ttl)
        self._details(target)  # one that has expired makes room
        if target.exists() and not overwrite:
            hint = ", or overwrite=True" if kind == "weights" else ""
            raise StoreError(f"a checkpoint {kind}/{name} exists in this run: choose another name{hint}")
        if info := self._run(run):
            self._use.take(info["owner"], disk.BLOCK + sum(map(disk.size_of, files.values())))
        temporary = target.parent / f".tmp-{uuid.uuid4().hex}"
        try:
            with writing(f"checkpoint {kind}/{name}"):
                _write_checkpoint(temporary, files, {"public": False, **details, "expires_at": expires})
                disk.sync(target.parent.parent)
                self._put(temporary, target)
        except StoreError:
            shutil.rmtree(temporary, ignore_errors=True)
            self._use.removed()
            raise
        return f"tinker://{run}/{kind}/{name}"

    def _put(self, temporary: Path, target: Path) -> None:
        """Rename `temporary` to `target`, keeping what is there until it is replaced."""
        old = target.with_name(f".old-{target.name}")
        with self._lock:
            replaces = target.exists()
            if replaces:
                os.replace(target, old)
            try:
                os.replace(temporary, target)
            except OSError:
                if replaces:
                    os.replace(old, target)
                raise
            disk.sync(target.parent)
        if replaces:
            self._remove(old)

    def _remove(self, folder: Path) -> None:
        disk.remove(folder)
        self._use.removed()

    def look_up(self, path: str) -> tuple[Path, dict | None, dict | None]:
        """The folder of a checkpoint, and its details and its run if there are any, whoever's they are."""
        run, kind, name = parse_path(path)
        folder = self._folder(run, kind, name)
        with self._lock:
            return folder, self._details(folder), self._run(run)

    def find(self, path: str, owner: str) -> tuple[Path, dict, dict]:
        """The folder, details and run of a checkpoint that `owner` may read: its own, or a published one.

        Raises:
            StoreError: there is none, or its time to live is over.
        """
        folder, details, info = self.look_up(path)
        if info is None or not (info["owner"] == owner or (details and details.get("public"))):
            raise StoreError(f"there is no training run {parse_path(path)[0]!r}", 404)
        if details is None:
            raise StoreError(f"there is no checkpoint {path}", 404)
        return folder, details, info

    def _find_own(self, path: str, owner: str) -> tuple[Path, dict]:
        """The folder and the details of a checkpoint that `owner` may change.

        Raises:
            StoreError: it does not exist (404), or is another's that is published (403).
        """
        folder, details, info = self.find(path, owner)
        if info["owner"] != owner:
            raise StoreError(f"{path} is published by another key: it can be read, not changed", 403)
        return folder, details

    def _details(self, folder: Path) -> dict | None:
        """checkpoint.json, or None when it is not there, damaged, or has expired (then it is deleted)."""
        details = self._records.read(folder / "checkpoint.json", CHECKPOINT_FIELDS)
        if details and details.get("expires_at") and datetime.fromisoformat(details["expires_at"]) < now():
            # Gone by another thread, or on a disk that takes no changes: it has ended all the same.
            with self._lock, suppress(OSError):
                self._remove(folder)
            return None
        return details

    def load(self, path: str, owner: str) -> Checkpoint:
        """A checkpoint that `owner` may read.

        Raises:
            StoreError: there is none, or its files are damaged.
        """
        folder, details, info = self.find(path, owner)
        try:
            weights = disk.read_tensors(folder / "adapter_model.safetensors")
            kept = "optimizer.safetensors" in details["files"]
            optimizer = disk.read_tensors(folder / "optimizer.safetensors") if kept else {}
        except FileNotFoundError as error:
            raise StoreError(f"{path} was deleted, or its files are missing", 404) from error
        except (OSError, SafetensorError) as error:
            raise StoreError(f"the files of {path} are damaged: {disk.reason(error)}") from error
        return Checkpoint(weights, optimizer, details, info)

    def list_checkpoints(self, owner: str, run: str | None = None) -> list[dict]:
        """Checkpoints as `tinker.types.Checkpoint`, newest first. Of another's run, the published ones."""
        runs = [self.run_info(run, owner, accessible=True)] if run else self.list_runs(owner)
        found = [checkpoint for info in runs for checkpoint in self._checkpoints(info, owner)]
        return sorted(found, key=lambda checkpoint: checkpoint["time"], reverse=True)

    def _checkpoints(self, info: dict, owner: str) -> Iterator[dict]:
        run = info["training_run_id"]
        for kind, type_name in KINDS.items():
            for folder in (self._run_folder(run) / kind).glob("[!.]*"):
                details = self._details(folder)
                if details and (info["owner"] == owner or details.get("public")):
                    yield {
                        "checkpoint_id": f"{kind}/{folder.name}",
                        "checkpoint_type": type_name,
                        "time": details["time"],
                        "tinker_path": f"tinker://{run}/{kind}/{folder.name}",
                        "size_bytes": sum(details["files"].values()),
                        "public": details.get("public", False),
                        "user_metadata": details.get("user_metadata"),
                        "expires_at": details.get("expires_at"),
                    }

    def delete(self, path: str, owner: str) -> None:
        with self._lock, writing(f"deletion of {path}"):
            self._remove(self._find_own(path, owner)[0])

    def set_ttl(self, path: str, owner: str, ttl: int | None) -> None:
        """Let a checkpoint end `ttl` seconds from now, or never (None)."""
        self._update(path, owner, {"expires_at": _expiry(ttl)})

    def publish(self, path: str, owner: str, public: bool) -> None:
        """Let every key read a checkpoint by its path, or only its owner."""
        self._update(path, owner, {"public": public})

    def _update(self, path: str, owner: str, values: dict) -> None:
        with self._lock, writing(f"details of {path}"):
            folder, details = self._find_own(path, owner)
            disk.write_json(folder / "checkpoint.json", {**details, **values})

    def copy(
        self, source: str, owner: str, run: str, session: str | None, project: str | None, ttl: int | None
    ) -> str:
        """Copy a readable checkpoint into a run made for it. Asked again, return the first copy's path.

        The new run has the `user_metadata` of the old one; from another key's run, only its format.

        Raises:
            StoreError: there is no such checkpoint, the run is taken, or the disk refused.
        """
        folder, details, info = self.find(source, owner)
        _, kind, name = parse_path(source)
        existing = self._run(run)
        if existing:
            if existing["owner"] != owner or existing.get("copied_from") != source:
                raise StoreError(f"training run {run} exists: a copy needs a run of its own")
            if self._details(self._folder(run, kind, name)):
                return f"tinker://{run}/{kind}/{name}"
        _expiry(ttl)
        metadata = info.get("user_metadata") if info["owner"] == owner else format_of(info)
        labels = {"owner": owner, "session": session, "project_id": project, "user_metadata": metadata}
        same = {key: info[key] for key in ADAPTER_FIELDS}
        self.create_run(run, {**same, **labels, "copied_from": source})
        files = {file: folder / file for file in details["files"]}
        own = {key: value for key, value in details.items() if key not in OF_ONE_PLACE}
        return self.save(run, kind, name, files, own, ttl, overwrite=False)


def _write_checkpoint(folder: Path, files: dict[str, Any], details: dict) -> None:
    """Write the files of a new checkpoint, and checkpoint.json last."""
    folder.mkdir(parents=True)
    for file, content in files.items():
        disk.write_file(folder / file, content)
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    record = {**details, "id": uuid.uuid4().hex, "time": now().isoformat(), "files": sizes}
    disk.write_json(folder / "checkpoint.json", record)
