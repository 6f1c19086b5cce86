"""Records in JSON files: a list of them, or one a line. Read strictly: see `helpers.files.parse_json`."""

import json
import re
from pathlib import Path

from helpers.data.rows import Row
from helpers.errors import DataError
from helpers.files import STRICT_JSON, JsonFault, parse_json

SPACE = re.compile(r"[ \t\r\n]*")
LENIENT = json.JSONDecoder(parse_int=str, parse_float=str)  # only finds where a value ends
NEEDS_A_LIST = "put the records in a list: [ {...}, {...} ]"
EMPTY = "put at least ten records into it, or name another file"


def json_list(path: Path, text: str) -> list[Row]:
    """The records of a list, each with its index.

    Raises:
        DataError: the text is not JSON, or not a list; names the line.
    """
    rows: list[Row] = []
    try:
        place = _skip_space(text, 0)
        if text[place : place + 1] != "[":
            value = parse_json(text)
            what = "an object" if isinstance(value, dict) else "one value"
            raise DataError(f"{path} holds {what}, not a list of records", NEEDS_A_LIST)
        place = _skip_space(text, place + 1)
        if text[place : place + 1] == "]":
            raise DataError(f"{path} holds an empty list", EMPTY)
        while True:
            row, place = _element(text, place, f"index {len(rows)}")
            rows.append(row)
            place = _skip_space(text, place)
            if text[place : place + 1] == "]":
                break
            if text[place : place + 1] != ",":
                raise json.JSONDecodeError("Expecting ',' delimiter", text, place)
            place = _skip_space(text, place + 1)
        place = _skip_space(text, place + 1)
        if place < len(text):
            raise json.JSONDecodeError("Extra data", text, place)
    except json.JSONDecodeError as error:
        fix = "correct it there; a missing comma, quote or bracket is the usual cause"
        if error.msg == "Extra data" and not rows:
            fix = "one JSON object a line is JSON Lines: rename the file to .jsonl"
        what = f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        raise DataError(what, fix) from error
    except (JsonFault, RecursionError) as error:
        what = str(error) if isinstance(error, JsonFault) else "it is nested too deeply to read"
        raise DataError(f"{path}, index {len(rows)}: {what}", "correct it there") from error
    return rows


def _element(text: str, place: int, where: str) -> tuple[Row, int]:
    """The value that begins at `place`, and where it ends."""
    try:
        value, end = STRICT_JSON.raw_decode(text, place)
        return Row(where, value), end
    except JsonFault as error:
        _, end = LENIENT.raw_decode(text, place)
        return Row(where, text[place:end], DataError(str(error), "correct it there")), end


def _skip_space(text: str, place: int) -> int:
    match = SPACE.match(text, place)
    return match.end() if match else place


def json_lines(path: Path, text: str) -> list[Row]:
    """The value of each line that is not blank.

    Raises:
        DataError: it is one list rather than lines.
    """
    if text.lstrip().startswith("["):
        raise DataError(
            f"{path} holds one list, not a record a line",
            "rename it to .json, or write each record on one line",
        )
    lines = enumerate(text.split("\n"), start=1)
    return [_line(line, f"line {number}") for number, line in lines if line.strip()]


def _line(line: str, where: str) -> Row:
    try:
        return Row(where, parse_json(line))
    except json.JSONDecodeError as error:
        what, fix = (
            f"not JSON: {error.msg} at column {error.colno}",
            "each line must be one whole JSON object",
        )
    except ValueError as error:
        what, fix = str(error), "correct it there"
    return Row(where, line, DataError(what, fix))
