"""Checkpoints on disk: a folder each, written beside its place and renamed, so that one that is listed is whole.

    STATE/runs/RUN/run.json
    STATE/runs/RUN/{weights,sampler_weights,external_weights}/NAME/
        checkpoint.json  adapter_model.safetensors  adapter_config.json  [optimizer.safetensors]
"""

import hashlib
import hmac
import json
import os
import re
import secrets
import shutil
import time
import uuid
from datetime import datetime, timedelta, timezone
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from helpers.stub_tinker.model import ALPHA

KINDS = {"weights": "training", "sampler_weights": "sampler", "external_weights": "external"}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
URL_SECONDS = 3600


class StoreError(Exception):
    """A request about checkpoints that can't be met; `status` is the HTTP status of the answer."""

    def __init__(self, message: str, status: int = 400):
        super().__init__(message)
        self.status = status


def now() -> datetime:
    return datetime.now(timezone.utc)


def parse_path(path: str) -> tuple[str, str, str]:
    """`tinker://RUN/KIND/NAME` as (run, kind, name).

    Raises:
        StoreError: it is no such path.
    """
    parts = path.removeprefix("tinker://").split("/") if path.startswith("tinker://") else []
    if len(parts) != 3 or parts[1] not in KINDS:
        raise StoreError(f"{path!r} is no checkpoint path: expected tinker://RUN/weights/NAME, with sampler_weights or external_weights as other kinds")
    return parts[0], parts[1], parts[2]


def _check(name: str, what: str) -> str:
    if not NAME.fullmatch(name.replace(":", "_")):
        raise StoreError(f"{name!r} can't name a {what}: use letters, digits, '.', '_' and '-', at most 128, starting with a letter or digit")
    return name


class Store:
    """All checkpoints under one state folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.runs = folder / "runs"
        self.runs.mkdir(parents=True, exist_ok=True)
        for left in self.runs.glob("*/*/.tmp-*"):  # what a kill left behind
            shutil.rmtree(left, ignore_errors=True)
        self._secret = self._url_secret()

    def _url_secret(self) -> bytes:
        path = self.folder / "url_secret"
        if not path.exists():
            with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as file:
                file.write(secrets.token_bytes(32))
        return path.read_bytes()

    def _run_folder(self, run: str) -> Path:
        return self.runs / _check(run, "training run")

    def _folder(self, run: str, kind: str, name: str) -> Path:
        return self._run_folder(run) / kind / _check(name, "checkpoint")

    # Training runs

    def create_run(self, run: str, info: dict) -> None:
        folder = self._run_folder(run)
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(folder / "run.json", {**info, "training_run_id": run, "created": now().isoformat()})

    def run_info(self, run: str, owner: str) -> dict:
        """What is known of a run.

        Raises:
            StoreError: there is none of that name for this owner.
        """
        path = self._run_folder(run) / "run.json"
        if not path.is_file():
            raise StoreError(f"there is no training run {run!r}", 404)
        info = json.loads(path.read_text(encoding="utf-8"))
        if info["owner"] != owner:
            raise StoreError(f"there is no training run {run!r}", 404)
        return info

    def list_runs(self, owner: str) -> list[dict]:
        """This owner's runs, newest first."""
        infos = [json.loads(path.read_text(encoding="utf-8")) for path in self.runs.glob("*/run.json")]
        return sorted((i for i in infos if i["owner"] == owner), key=lambda i: i["created"], reverse=True)

    # Checkpoints

    def save(self, run: str, kind: str, name: str, files: dict[str, bytes | dict], details: dict, ttl: int | None, overwrite: bool) -> str:
        """Write one checkpoint; when this returns it survives a crash.

        Args:
            files: tensors (a dict, stored as safetensors) or bytes by file name.
            details: kept in checkpoint.json.
            ttl: seconds until it may be deleted; None for ever.

        Returns:
            Its tinker path.

        Raises:
            StoreError: the name is taken or not allowed, or the disk refused.
        """
        target = self._folder(run, kind, name)
        if target.exists() and not overwrite:
            raise StoreError(f"a checkpoint {kind}/{name} exists in this run: choose another name, or overwrite=True")
        temporary = target.parent / f".tmp-{uuid.uuid4().hex}"
        try:
            temporary.mkdir(parents=True)
            for file, content in files.items():
                path = temporary / file
                if isinstance(content, dict):
                    save_file({key: value.detach().cpu().contiguous() for key, value in content.items()}, path)
                else:
                    path.write_bytes(content)
            expires = (now() + timedelta(seconds=ttl)).isoformat() if ttl else None
            sizes = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
            _write_json(temporary / "checkpoint.json", {**details, "time": now().isoformat(), "expires_at": expires, "files": sizes})
            for path in temporary.iterdir():
                _sync(path)
            _sync(temporary)
            if target.exists():
                os.replace(target, temporary.parent / f".tmp-old-{uuid.uuid4().hex}")
            os.replace(temporary, target)
            _sync(target.parent)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise StoreError(f"the server could not write the checkpoint: {error.strerror}") from error
        for old in target.parent.glob(".tmp-old-*"):
            shutil.rmtree(old, ignore_errors=True)
        return f"tinker://{run}/{kind}/{name}"

    def find(self, path: str, owner: str) -> tuple[Path, dict, dict]:
        """A checkpoint's folder, its details and its run's.

        Raises:
            StoreError: it does not exist for this owner, or its time to live is over.
        """
        run, kind, name = parse_path(path)
        info = self.run_info(run, owner)
        folder = self._folder(run, kind, name)
        details = self._details(folder)
        if details is None:
            raise StoreError(f"there is no checkpoint {path}", 404)
        return folder, details, info

    def _details(self, folder: Path) -> dict | None:
        """checkpoint.json, or None when it is not there or has expired (then it is deleted)."""
        path = folder / "checkpoint.json"
        if not path.is_file():
            return None
        details = json.loads(path.read_text(encoding="utf-8"))
        if details["expires_at"] and datetime.fromisoformat(details["expires_at"]) < now():
            shutil.rmtree(folder, ignore_errors=True)
            return None
        return details

    def load(self, path: str, owner: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict, dict]:
        """Weights, optimizer state (empty if none was saved), details and run info of a checkpoint."""
        folder, details, info = self.find(path, owner)
        optimizer = folder / "optimizer.safetensors"
        return load_file(folder / "adapter_model.safetensors"), load_file(optimizer) if optimizer.exists() else {}, details, info

    def list_checkpoints(self, owner: str, run: str | None = None) -> list[dict]:
        """Checkpoints in the form of `tinker.types.Checkpoint`, newest first."""
        runs = [self.run_info(run, owner)] if run else self.list_runs(owner)
        found = []
        for info in runs:
            for kind, type_name in KINDS.items():
                for folder in (self._run_folder(info["training_run_id"]) / kind).glob("[!.]*"):
                    if details := self._details(folder):
                        found.append({
                            "checkpoint_id": f"{kind}/{folder.name}",
                            "checkpoint_type": type_name,
                            "time": details["time"],
                            "tinker_path": f"tinker://{info['training_run_id']}/{kind}/{folder.name}",
                            "size_bytes": sum(details["files"].values()),
                            "public": False,
                            "user_metadata": details.get("user_metadata"),
                            "expires_at": details["expires_at"],
                        })
        return sorted(found, key=lambda c: c["time"], reverse=True)

    def delete(self, path: str, owner: str) -> None:
        folder, _, _ = self.find(path, owner)
        hidden = folder.parent / f".tmp-deleted-{uuid.uuid4().hex}"
        os.replace(folder, hidden)
        shutil.rmtree(hidden, ignore_errors=True)

    def set_ttl(self, path: str, owner: str, ttl: int | None) -> None:
        folder, details, _ = self.find(path, owner)
        details["expires_at"] = (now() + timedelta(seconds=ttl)).isoformat() if ttl else None
        _write_json(folder / "checkpoint.json", details)

    # Signed URLs for files of external weights

    def sign(self, path: str, file: str, expires: int) -> str:
        return hmac.new(self._secret, f"{path}\n{file}\n{expires}".encode(), hashlib.sha256).hexdigest()

    def signed_file(self, path: str, file: str, expires: int, signature: str) -> Path:
        """The file that a signed URL names.

        Raises:
            StoreError: the signature is wrong, the time is over, or the file is gone.
        """
        if not hmac.compare_digest(self.sign(path, file, expires), signature):
            raise StoreError("the signature of this URL is wrong", 403)
        if expires < time.time():
            raise StoreError("this URL has expired: ask for new ones", 403)
        run, kind, name = parse_path(path)
        folder = self._folder(run, kind, name)
        details = self._details(folder)
        if details is None or file not in details["files"]:
            raise StoreError(f"{path} has no file {file!r}", 404)
        return folder / file


def adapter_config(layout, base_model: str) -> bytes:
    """adapter_config.json of an adapter, as Tinker exports it."""
    return json.dumps({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": layout.rank,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(module.split(".")[-1] for module in layout.modules),
    }, indent=2).encode()


def _write_json(path: Path, value: dict) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")
    _sync(temporary)
    os.replace(temporary, path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
