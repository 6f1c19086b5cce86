"""Writing files so that a kill leaves the old or the new, and reading those that a disk may have damaged."""

import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from helpers.stub_tinker.errors import StoreError, WriteError

log = logging.getLogger("stub_tinker")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
BLOCK = 4096  # bytes that even a small file takes
TENSOR_HEADER = 200  # bytes of a tensor's name and place in a file, at most
TIMES = ("created", "time", "expires_at")  # fields that hold a time with its zone


def now() -> datetime:
    return datetime.now(UTC)


def check_name(name: str, what: str) -> str:
    """`name`, if it can be the name of a file.

    Raises:
        StoreError: it can't; says of what.
    """
    if not NAME.fullmatch(name.replace(":", "_")):
        raise StoreError(
            f"{name!r} can't name a {what}: use letters, digits, '.', '_' and '-', at most 128, "
            "starting with a letter or digit"
        )
    return name


@contextmanager
def writing(what: str) -> Iterator[None]:
    """Turn every refusal of the disk into a `WriteError` that says why."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise WriteError(f"the server could not write the {what}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """`No space left on device`, from Python's error or from that of safetensors, which is only a text."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    number = re.search(r"\(os error (\d+)\)", str(error))
    return os.strerror(int(number[1])) if number else str(error)


def size_of(content: Any) -> int:
    """Bytes that `write_file` would write, at most."""
    if isinstance(content, dict):
        return sum(tensor.nbytes + TENSOR_HEADER for tensor in content.values())
    return content.stat().st_size if isinstance(content, Path) else len(content)


def write_file(path: Path, content: Any) -> None:
    """Write and sync one new file: tensors by name (as safetensors), bytes, or the path of a file to copy."""
    if isinstance(content, dict):
        save_file({key: value.detach().cpu().contiguous() for key, value in content.items()}, path)
    elif isinstance(content, Path):
        shutil.copyfile(content, path)
    else:
        path.write_bytes(content)
    sync(path)


def write_json(path: Path, value: dict) -> None:
    """Replace a JSON file, through a temporary file beside it."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")
        sync(temporary)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write tensors that need not survive a kill."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name.

    Raises:
        OSError, SafetensorError: the file is missing or damaged.
    """
    return load_file(path)


def remove(folder: Path) -> None:
    """Delete a folder so that it is there whole or not at all."""
    hidden = folder.with_name(f".tmp-{uuid.uuid4().hex}")
    os.replace(folder, hidden)
    sync(folder.parent)
    shutil.rmtree(hidden, ignore_errors=True)


def sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Records:
    """Reads JSON files of ours. A damaged one is skipped, and the log names it once.

    Args:
        earlier_owners: what owners are called now, by what an earlier version called them.
    """

    def __init__(self, earlier_owners: Mapping[str, str] | None = None) -> None:
        self._damaged: set[Path] = set()
        self._earlier_owners = earlier_owners or {}

    def read(self, path: Path, fields: Mapping[str, type]) -> dict | None:
        """The object in a file, or None if it is not there or damaged.

        Args:
            fields: what it must hold, by name.
        """
        try:
            value = json.loads(path.read_bytes())
            wrong = [key for key, kind in fields.items() if not isinstance(value[key], kind)]
            for key in TIMES:
                if value.get(key) is not None and datetime.fromisoformat(value[key]).tzinfo is None:
                    wrong.append(key)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            wrong = [f"{type(error).__name__}: {error}"]
        else:
            if not wrong:
                if "owner" in value:
                    value["owner"] = self._earlier_owners.get(value["owner"], value["owner"])
                return value
        if path not in self._damaged:
            self._damaged.add(path)
            log.error("skipped a damaged file: %s (%s)", path, ", ".join(wrong))
        return None
