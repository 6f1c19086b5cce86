"""Reading files that others wrote, strictly; writing small ones so that a crash never leaves half of one.

text = read_text("own.csv")        # UTF-8, or UTF-16 and UTF-32 with a byte order mark
value = parse_json(text)           # what two readers could take for two things is refused
"""

import codecs
import json
import math
import os
import re
import stat
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from helpers.errors import CourseError, DataError, RunError

MOST_DIGITS = 4300  # of a whole number; Python itself refuses longer ones
DEEPEST = 100  # levels of lists and objects
SURROGATE = re.compile("[\ud800-\udfff]")
ENCODINGS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
NO_TEXT = {
    b"PK\x03\x04": ("a zip archive or an Excel workbook", "unpack it; in Excel, save it as CSV UTF-8"),
    b"\x1f\x8b": ("compressed with gzip", "unpack it (gunzip); a data file's name may end in .gz instead"),
    b"\x28\xb5\x2f\xfd": (
        "compressed with zstd",
        "unpack it (unzstd); a data file's name may end in .zst instead",
    ),
    b"PAR1": ("a Parquet file", "let its name end in .parquet"),
}


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


def read_text(path: str | Path, missing: str = "check the path") -> str:
    """Text of a file that a person or another program wrote: UTF-8, or what its byte order mark says.

    Args:
        missing: what to do if it is not there.

    Raises:
        DataError: it is not there, can't be read, or is no text; says what it is instead, where that shows.
    """
    return text_of_bytes(Path(path), read_bytes(path, missing))


def read_bytes(path: str | Path, missing: str = "check the path") -> bytes:
    """What a file of others holds.

    Raises:
        DataError: it is not there, or can't be read.
    """
    path = Path(path)
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist", missing) from error
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder, not a file", "name the files in it") from error
    except (OSError, ValueError) as error:
        raise DataError(
            f"can't read {path}: {getattr(error, 'strerror', error)}", "check its path"
        ) from error


def text_of_bytes(path: Path, raw: bytes) -> str:
    """The text that a file holds; raises DataError, as `read_text` does, if it is none."""
    encoding = next((name for mark, name in ENCODINGS.items() if raw.startswith(mark)), "utf-8-sig")
    if encoding == "utf-8-sig":
        _check_is_text(path, raw)
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        name = encoding.upper().removesuffix("-SIG")
        fix = f"it begins with the mark of {name}, and may be cut off: save it again as UTF-8"
        if encoding == "utf-8-sig":
            fix = (
                f"save it as UTF-8. If it is Chinese, for example: iconv -f GB18030 -t UTF-8 {path.name} > "
                f"utf8-{path.name} (Western European: CP1252 for GB18030)"
            )
        raise DataError(f"{path} is not {name}: byte {error.start} can't be read", fix) from error


def _check_is_text(path: Path, raw: bytes) -> None:
    for mark, (what, fix) in NO_TEXT.items():
        if raw.startswith(mark):
            raise DataError(f"{path} is no text: it is {what}", fix)
    if b"\0" not in raw:
        return
    even, odd = (raw[start:4000:2].count(0) for start in (0, 1))
    if even + odd > max(1, len(raw[:4000]) / 20):
        name = "UTF-16BE" if even > odd else "UTF-16LE"
        raise DataError(
            f"{path} is not UTF-8: it looks like {name} without a byte order mark",
            f"save it as UTF-8: iconv -f {name} -t UTF-8 {path.name} > utf8-{path.name}",
        )
    raise DataError(f"{path} is no text: byte {raw.index(0)} is 0", "save it as UTF-8 text")


class JsonFault(ValueError):
    """JSON by its grammar, but no value that every reader would take for the same."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise JsonFault(f"the key {twice!r} occurs twice in one object")
    return found


def _whole_number(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise JsonFault(f"a number of {len(text):,} digits is too long; in quotes it would be text")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise JsonFault(f"the number {text[:20]} is too large; in quotes it would be text")
    return value


def _constant(text: str) -> Any:
    raise JsonFault(f"{text} is not JSON")


class StrictDecoder(json.JSONDecoder):
    """Decodes JSON, and refuses what is ambiguous or can't be used later: a key that occurs twice, NaN and
    Infinity, numbers of thousands of digits, half of a surrogate pair, more than DEEPEST levels.

    Its methods raise ValueError: JSONDecodeError where the grammar is not met, else JsonFault.
    """

    def __init__(self) -> None:
        super().__init__(
            object_pairs_hook=_object, parse_int=_whole_number, parse_float=_number, parse_constant=_constant
        )

    def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]:
        try:
            value, end = super().raw_decode(s, idx)
        except RecursionError as error:
            raise JsonFault("it is nested too deeply to read") from error
        read = s[idx:end]
        if "\\u" in read or not read.isascii() or read.count("[") + read.count("{") > DEEPEST:
            _check_values(value)  # slow, and most texts can't need it
        return value, end


def _check_values(value: Any) -> None:
    to_do = [(value, 0)]
    while to_do:
        value, depth = to_do.pop()
        if depth > DEEPEST:
            raise JsonFault(f"it is nested too deeply to read: over {DEEPEST} levels")
        if isinstance(value, str) and not value.isascii() and (found := SURROGATE.search(value)):
            raise JsonFault(f"a text holds half of a character, \\u{ord(found[0]):04x}, as if it was cut off")
        if isinstance(value, dict):
            to_do += [(part, depth + 1) for pair in value.items() for part in pair]
        elif isinstance(value, list):
            to_do += [(part, depth + 1) for part in value]


STRICT_JSON = StrictDecoder()


def parse_json(text: str) -> Any:
    """One JSON value, read strictly.

    Raises:
        ValueError: it is not JSON, or not clear: see StrictDecoder. Its text says what is wrong.
    """
    return STRICT_JSON.decode(text)


def read_json(path: str | Path) -> Any:
    """Read a JSON file that the course wrote.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist", "run the notebook before this one again") from error
    except (ValueError, RecursionError) as error:
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
        except (ValueError, RecursionError) as error:
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
        return tomllib.loads(read_text(path))
    except DataError as error:
        raise CourseError(error.what, fix) from error
    except (ValueError, RecursionError) as error:  # a TOMLDecodeError, or a number of thousands of digits
        raise CourseError(f"{path} can't be read: {error}", fix) from error
