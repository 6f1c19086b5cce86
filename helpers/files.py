"""Reading and writing small files so that a crash never leaves half of one."""

import json
import os
import stat
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from helpers.errors import CourseError, RunError


def write_text(path: str | Path, text: str, private: bool = False) -> Path:
    """Write `text` as UTF-8 through a temporary file in the same folder, then rename.

    Args:
        private: only this user may read it, from its first byte on.

    Raises:
        RunError: the folder can't be made or written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        with open(
            os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666),
            "w",
            encoding="utf-8",
        ) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True) if os.access(path.parent, os.W_OK) else None
        raise RunError(
            f"can't write {path}: {error.strerror}", "free disk space, or choose a folder you may write to"
        ) from error
    return path


def private_folder(path: Path) -> Path:
    """The folder, made if it is missing, and closed to other users.

    Raises:
        RunError: it can't be made, or belongs to someone else.
    """
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            path.chmod(0o700)
    except OSError as error:
        raise RunError(
            f"can't use the folder {path}: {error.strerror}", "choose another one, which you may write to"
        ) from error
    return path


def write_json(path: str | Path, value: Any) -> Path:
    """Write `value` as the guide saves its files: UTF-8, `ensure_ascii=False`, indent 2."""
    return write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def write_jsonl(path: str | Path, rows: Iterable[dict]) -> Path:
    """Write one JSON object a line."""
    return write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def append_jsonl(path: str | Path, row: dict) -> None:
    """Add one JSON object as a line, on disk before this returns.

    Raises:
        RunError: the file can't be written.
    """
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RunError(
            f"can't write {path}: {error.strerror}", "free disk space, or choose a folder you may write to"
        ) from error


def read_json(path: str | Path) -> Any:
    """Read a JSON file that the course wrote.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist", "run the notebook before this one again") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(
            f"{path} is damaged: {error}", "delete it and run the notebook that makes it again"
        ) from error


def read_jsonl(path: str | Path) -> list[dict]:
    """Read one JSON object a line. A last line cut by a crash is dropped, as if it had not been written."""
    rows = []
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise RunError(
                f"{path}, line {number} is damaged: {error}", "delete the file and run its notebook again"
            ) from error
    return rows


def read_toml(
    path: str | Path, fix: str = "correct it there, or get it back: git checkout helpers/"
) -> dict[str, Any]:
    """Read a TOML file that users edit.

    Raises:
        CourseError: it is missing, or not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CourseError(f"{path} can't be read: {error}", fix) from error
