"""Checkpoints on disk. What was reported survives a kill at any moment, and nothing half-written is ever seen.

    STATE/runs/RUN/run.json
    STATE/runs/RUN/{weights,sampler_weights,external_weights}/NAME/
        checkpoint.json  adapter_model.safetensors  adapter_config.json  [optimizer.safetensors]
    STATE/sessions/SESSION.json
    STATE/samplers/SESSION/…      weights of samplers that are not in memory now

A checkpoint is written to `.tmp-…` beside its place, synced, and renamed. One that is overwritten waits as `.old-NAME`
until the new one is in place; a start after a kill puts it back. A file that can't be read is skipped, with a line in the log.
"""

import fcntl
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from helpers.stub_tinker.model import ALPHA

log = logging.getLogger("stub_tinker")

KINDS = {"weights": "training", "sampler_weights": "sampler", "external_weights": "external"}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
URL_SECONDS = 3600
MAX_TTL = 10 * 365 * 86400
RUN_FIELDS = {
    "owner": str,
    "created": str,
    "base_model": str,
    "lora_rank": int,
    "train_attn": bool,
    "train_mlp": bool,
    "train_unembed": bool,
}
CHECKPOINT_FIELDS = {"time": str, "files": dict}
SESSION_FIELDS = {"owner": str, "created": str}


class StoreError(Exception):
    """A request about checkpoints that can't be met; `status` is the HTTP status of the answer."""

    def __init__(self, message: str, status: int = 400):
        super().__init__(message)
        self.status = status


class WriteError(StoreError):
    """The disk refused. A 4xx all the same: the SDK would repeat a 5xx for minutes."""


def now() -> datetime:
    return datetime.now(UTC)


def parse_path(path: str) -> tuple[str, str, str]:
    """`tinker://RUN/KIND/NAME` as (run, kind, name).

    Raises:
        StoreError: it is no such path.
    """
    parts = path.removeprefix("tinker://").split("/") if path.startswith("tinker://") else []
    if len(parts) != 3 or parts[1] not in KINDS:
        raise StoreError(
            f"{path!r} is no checkpoint path: expected tinker://RUN/weights/NAME, with sampler_weights or external_weights as other kinds"
        )
    return parts[0], parts[1], parts[2]


def _check(name: str, what: str) -> str:
    if not NAME.fullmatch(name.replace(":", "_")):
        raise StoreError(
            f"{name!r} can't name a {what}: use letters, digits, '.', '_' and '-', at most 128, starting with a letter or digit"
        )
    return name


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
    """All checkpoints under one state folder. Safe to use from several threads; one process at a time (see `lock`)."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.runs, self.sessions, self.samplers = folder / "runs", folder / "sessions", folder / "samplers"
        self._lock = threading.RLock()  # of renames, so that nobody reads between the two of an overwrite
        self._damaged: set[Path] = set()  # files that the log has named
        for made in (self.runs, self.sessions):
            made.mkdir(parents=True, exist_ok=True)
        self._tidy()
        self._secret = self._url_secret()

    def _tidy(self) -> None:
        """Finish or undo what a kill interrupted."""
        for old in self.runs.glob("*/*/.old-*"):
            target = old.with_name(old.name.removeprefix(".old-"))
            _remove(old) if target.exists() else os.replace(old, target)
        for left in [*self.runs.glob("*/*/.tmp-*"), *self.runs.glob(".tmp-*"), self.samplers]:
            shutil.rmtree(left, ignore_errors=True)
        for left in [
            *self.runs.glob("*/.*.tmp"),
            *self.runs.glob("*/*/*/.*.tmp"),
            *self.sessions.glob(".*.tmp"),
        ]:
            left.unlink(missing_ok=True)

    def _url_secret(self) -> bytes:
        path = self.folder / "url_secret"
        if not path.is_file() or path.stat().st_size != 32:
            temporary = path.with_name(".url_secret.tmp")
            with open(os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as file:
                file.write(secrets.token_bytes(32))
            os.replace(temporary, path)
        return path.read_bytes()

    def _run_folder(self, run: str) -> Path:
        return self.runs / _check(run, "training run")

    def _folder(self, run: str, kind: str, name: str) -> Path:
        return self._run_folder(run) / kind / _check(name, "checkpoint")

    def _read(self, path: Path, fields: dict[str, type]) -> dict | None:
        """A JSON file of ours, or None if it is not there or damaged."""
        try:
            value = json.loads(path.read_bytes())
            wrong = [key for key, kind in fields.items() if not isinstance(value[key], kind)]
            for key in ("created", "time", "expires_at"):
                if value.get(key) is not None and datetime.fromisoformat(value[key]).tzinfo is None:
                    wrong.append(key)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            wrong = [f"{type(error).__name__}: {error}"]
        if not wrong:
            return value
        if path not in self._damaged:
            self._damaged.add(path)
            log.error("skipped a damaged file: %s (%s)", path, ", ".join(wrong))
        return None

    # Training runs

    def create_run(self, run: str, info: dict) -> None:
        folder = self._run_folder(run)
        with _writing(f"training run {run}"):
            folder.mkdir(parents=True, exist_ok=True)
            _write_json(folder / "run.json", {**info, "training_run_id": run, "created": now().isoformat()})
            _sync(self.runs)

    def _run(self, run: str) -> dict | None:
        info = self._read(self._run_folder(run) / "run.json", RUN_FIELDS)
        return info and {**info, "training_run_id": run}

    def run_info(self, run: str, owner: str, accessible: bool = False) -> dict:
        """What is known of a run.

        Args:
            accessible: another owner's run will do if a checkpoint of it is published.

        Raises:
            StoreError: there is none of that name for this owner.
        """
        info = self._run(run)
        if info is None or not (
            info["owner"] == owner or (accessible and any(self._checkpoints(info, owner)))
        ):
            raise StoreError(f"there is no training run {run!r}", 404)
        return info

    def list_runs(self, owner: str, accessible: bool = False) -> list[dict]:
        """This owner's runs, newest first; with `accessible`, also those of others that have a published checkpoint."""
        infos = [info for path in self.runs.glob("[!.]*/run.json") if (info := self._run(path.parent.name))]
        seen = [i for i in infos if i["owner"] == owner or (accessible and any(self._checkpoints(i, owner)))]
        return sorted(seen, key=lambda i: i["created"], reverse=True)

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
            files: by file name: tensors (a dict, stored as safetensors), bytes, or the path of a file to copy.
            details: kept in checkpoint.json.
            ttl: seconds until it may be deleted; None for ever.

        Returns:
            Its tinker path.

        Raises:
            StoreError: the name is taken or not allowed, or the disk refused.
        """
        target = self._folder(run, kind, name)
        expires = _expiry(ttl)
        self._details(target)  # one that has expired makes room
        if target.exists() and not overwrite:
            raise StoreError(
                f"a checkpoint {kind}/{name} exists in this run: choose another name"
                + (", or overwrite=True" if kind == "weights" else "")
            )
        temporary = target.parent / f".tmp-{uuid.uuid4().hex}"
        try:
            with _writing(f"checkpoint {kind}/{name}"):
                temporary.mkdir(parents=True)
                for file, content in files.items():
                    _write_file(temporary / file, content)
                sizes = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
                record = {
                    "public": False,
                    **details,
                    "id": uuid.uuid4().hex,
                    "time": now().isoformat(),
                    "expires_at": expires,
                    "files": sizes,
                }
                _write_json(temporary / "checkpoint.json", record)
                _sync(target.parent.parent)
                self._put(temporary, target)
        except StoreError:
            shutil.rmtree(temporary, ignore_errors=True)
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
            _sync(target.parent)
        if replaces:
            _remove(old)

    def _find(self, path: str) -> tuple[Path, dict | None, dict | None]:
        run, kind, name = parse_path(path)
        folder = self._folder(run, kind, name)
        with self._lock:
            return folder, self._details(folder), self._run(run)

    def find(self, path: str, owner: str) -> tuple[Path, dict, dict]:
        """The folder, the details and the run of a checkpoint that `owner` may read: an own one, or a published one.

        Raises:
            StoreError: there is none, or its time to live is over.
        """
        folder, details, info = self._find(path)
        if info is None or not (info["owner"] == owner or (details and details.get("public"))):
            raise StoreError(f"there is no training run {parse_path(path)[0]!r}", 404)
        if details is None:
            raise StoreError(f"there is no checkpoint {path}", 404)
        return folder, details, info

    def find_own(self, path: str, owner: str) -> tuple[Path, dict]:
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
        details = self._read(folder / "checkpoint.json", CHECKPOINT_FIELDS)
        if details and details.get("expires_at") and datetime.fromisoformat(details["expires_at"]) < now():
            with (
                self._lock,
                suppress(OSError),
            ):  # gone by another thread, or a disk that takes no changes: it has ended all the same
                _remove(folder)
            return None
        return details

    def load(
        self, path: str, owner: str
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict, dict]:
        """Weights, optimizer state (empty if none was saved), details and run info of a checkpoint."""
        folder, details, info = self.find(path, owner)
        try:
            weights = load_file(folder / "adapter_model.safetensors")
            optimizer = (
                load_file(folder / "optimizer.safetensors")
                if "optimizer.safetensors" in details["files"]
                else {}
            )
        except FileNotFoundError as error:
            raise StoreError(f"{path} was deleted, or its files are missing", 404) from error
        except (OSError, SafetensorError) as error:
            raise StoreError(f"the files of {path} are damaged: {_reason(error)}") from error
        return weights, optimizer, details, info

    def list_checkpoints(self, owner: str, run: str | None = None) -> list[dict]:
        """Checkpoints in the form of `tinker.types.Checkpoint`, newest first. Of another's run, those that are published."""
        runs = [self.run_info(run, owner, accessible=True)] if run else self.list_runs(owner)
        return sorted(
            (c for info in runs for c in self._checkpoints(info, owner)),
            key=lambda c: c["time"],
            reverse=True,
        )

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
        with self._lock, _writing(f"deletion of {path}"):
            _remove(self.find_own(path, owner)[0])

    def set_ttl(self, path: str, owner: str, ttl: int | None) -> None:
        """Let a checkpoint end `ttl` seconds from now, or never (None)."""
        self._update(path, owner, {"expires_at": _expiry(ttl)})

    def publish(self, path: str, owner: str, public: bool) -> None:
        """Let every key read a checkpoint by its path, or only its owner."""
        self._update(path, owner, {"public": public})

    def _update(self, path: str, owner: str, values: dict) -> None:
        with self._lock, _writing(f"details of {path}"):
            folder, details = self.find_own(path, owner)
            _write_json(folder / "checkpoint.json", {**details, **values})

    def copy(
        self, source: str, owner: str, run: str, session: str | None, project: str | None, ttl: int | None
    ) -> str:
        """Copy a readable checkpoint into a run of `owner`, made for it. Asked again, it returns the first copy's path.

        Raises:
            StoreError: there is no such checkpoint, the run is taken, or the disk refused.
        """
        folder, details, info = self.find(source, owner)
        _, kind, name = parse_path(source)
        target = self._folder(run, kind, name)
        existing = self._run(run)
        if existing:
            if existing["owner"] == owner and existing.get("copied_from") == source and self._details(target):
                return f"tinker://{run}/{kind}/{name}"
            if existing["owner"] != owner or existing.get("copied_from") != source:
                raise StoreError(f"training run {run} exists: a copy needs a run of its own")
        _expiry(ttl)
        kept = ("base_model", "lora_rank", "train_attn", "train_mlp", "train_unembed")
        self.create_run(
            run,
            {
                **{key: info[key] for key in kept},
                "owner": owner,
                "session": session,
                "project_id": project,
                "user_metadata": {},
                "copied_from": source,
            },
        )
        own = {
            key: value
            for key, value in details.items()
            if key not in ("public", "id", "time", "expires_at", "files")
        }
        return self.save(
            run, kind, name, {file: folder / file for file in details["files"]}, own, ttl, overwrite=False
        )

    # Weights of samplers that are not in memory now; they end with their session

    def set_aside(self, session: str, flat: torch.Tensor) -> Path:
        path = self.samplers / _check(session, "session") / f"{uuid.uuid4().hex}.safetensors"
        with _writing("weights of a sampler"):
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"flat": flat}, path)
        return path

    def read_back(self, path: Path) -> torch.Tensor:
        try:
            return load_file(path)["flat"]
        except (OSError, SafetensorError) as error:
            raise StoreError(
                f"the weights of this sampler are gone: {_reason(error)}. Make a new sampling client"
            ) from error

    def forget_set_aside(self, session: str) -> None:
        shutil.rmtree(self.samplers / session, ignore_errors=True)

    # Sessions

    def save_session(self, session: str, record: dict) -> None:
        with _writing(f"session {session}"):
            _write_json(self.sessions / f"{_check(session, 'session')}.json", record)

    def session(self, session: str, owner: str) -> dict:
        """What is known of a session, ended ones too.

        Raises:
            StoreError: there is none of that id for this owner.
        """
        record = (
            self._read(self.sessions / f"{session}.json", SESSION_FIELDS) if NAME.fullmatch(session) else None
        )
        if record is None or record["owner"] != owner:
            raise StoreError(f"there is no session {session!r}", 404)
        return record

    def list_sessions(self, owner: str) -> list[tuple[str, dict]]:
        """This owner's sessions, newest first."""
        records = [
            (path.stem, record)
            for path in self.sessions.glob("[!.]*.json")
            if (record := self._read(path, SESSION_FIELDS))
        ]
        return sorted(
            ((key, r) for key, r in records if r["owner"] == owner),
            key=lambda row: (row[1]["created"], row[0]),
            reverse=True,
        )

    # Signed URLs for files of external weights

    def sign(self, path: str, file: str, expires: int) -> str:
        """A signature for this very checkpoint: one saved later under the same name has another.

        Raises:
            StoreError: there is no such checkpoint.
        """
        folder, details, _ = self._find(path)
        if details is None or folder is None:
            raise StoreError(f"there is no checkpoint {path}", 404)
        identity = details.get("id") or details["time"]
        return hmac.new(
            self._secret, f"{path}\n{identity}\n{file}\n{expires}".encode(), hashlib.sha256
        ).hexdigest()

    def signed_file(self, path: str, file: str, expires: int, signature: str) -> Path:
        """The file that a signed URL names.

        Raises:
            StoreError: the signature is wrong, the time is over, or the file is gone.
        """
        folder, details, _ = self._find(path)
        if details is None or not hmac.compare_digest(
            self.sign(path, file, expires).encode(), signature.encode()
        ):
            raise StoreError("the signature of this URL is wrong, or its checkpoint is gone", 403)
        if expires < time.time():
            raise StoreError("this URL has expired: ask for new ones", 403)
        if file not in details["files"]:
            raise StoreError(f"{path} has no file {file!r}", 404)
        return folder / file


def lock(folder: Path, in_use: Callable[[], bool], on_wait: Callable[[], None], seconds: float = 60) -> int:
    """Take a state folder for this process; the lock goes when the process ends, however it ends.

    Args:
        in_use: whether its holder serves; one that is ending is waited for.
        on_wait: called once, if there is a wait.

    Returns:
        The descriptor that holds it.

    Raises:
        TimeoutError: another process keeps it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    deadline = time.monotonic() + seconds
    waited = False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except BlockingIOError:
            if in_use() or time.monotonic() > deadline:
                os.close(handle)
                raise TimeoutError from None
        if not waited:
            on_wait()
            waited = True
        time.sleep(0.1)


def adapter_config(layout, base_model: str) -> bytes:
    """adapter_config.json of an adapter, as Tinker exports it."""
    return json.dumps(
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_model,
            "r": layout.rank,
            "lora_alpha": ALPHA,
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": sorted(module.split(".")[-1] for module in layout.modules),
        },
        indent=2,
    ).encode()


@contextmanager
def _writing(what: str) -> Iterator[None]:
    """Turn every refusal of the disk into a `WriteError` that says why."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise WriteError(f"the server could not write the {what}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """`No space left on device`, from Python's error or from that of safetensors, which carries only a text."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    number = re.search(r"\(os error (\d+)\)", str(error))
    return os.strerror(int(number[1])) if number else str(error)


def _write_file(path: Path, content: Any) -> None:
    if isinstance(content, dict):
        save_file({key: value.detach().cpu().contiguous() for key, value in content.items()}, path)
    elif isinstance(content, Path):
        shutil.copyfile(content, path)
    else:
        path.write_bytes(content)
    _sync(path)


def _write_json(path: Path, value: dict) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")
        _sync(temporary)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _remove(folder: Path) -> None:
    """Delete a folder so that it is there whole or not at all."""
    hidden = folder.with_name(f".tmp-{uuid.uuid4().hex}")
    os.replace(folder, hidden)
    _sync(folder.parent)
    shutil.rmtree(hidden, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
