"""The settings of a sweep, a run each: every combination of a grid, or the rows of a file."""

import itertools
import json
from pathlib import Path
from typing import Any

from helpers.data.csv_files import read_table, split_cells
from helpers.errors import CourseError, DataError
from helpers.files import parse_json, read_text
from helpers.runs.chosen import parse_value


def grid(values: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Every combination: `grid({"rank": [8, 32], "epochs": [1, 2]})` gives four. The last name changes
    fastest.
    """
    return [
        dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values())
    ]


def grid_values(texts: list[str]) -> dict[str, list[Any]]:
    """Names and values from `NAME=VALUE,VALUE`. A value with a comma in it goes in double quotes.

    Raises:
        CourseError: a text has another form, or a name comes twice.
    """
    found: dict[str, list[Any]] = {}
    for text in texts:
        name, _, values = (part.strip() for part in text.partition("="))
        cells = _cells(values)
        if not name or not all(cells):
            raise CourseError(
                f"--grid {text!r} is not NAME=VALUE,VALUE", "write for example --grid rank=8,32"
            )
        if name in found:
            raise CourseError(f"--grid names {name} twice", f"write all values after one --grid {name}=")
        found[name] = [parse_value(name, cell) for cell in cells]
    return found


def _cells(text: str) -> list[str]:
    """The values of a list; one empty value if the text is none."""
    try:
        return [cell.strip() for cell in split_cells(text)] or [""]
    except DataError:
        return [""]


def read_settings(path: str | Path) -> list[dict[str, Any]]:
    """Settings from a file: a `.json` list of objects, or a `.csv` table with the names in its head.

    An empty cell sets nothing.

    Raises:
        DataError: the file can't be read or has another form; says the line or index.
    """
    path = Path(path)
    reader = {".json": _read_json, ".csv": _read_csv}.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path}: settings are read from .json and .csv files",
            "write a list of objects, or a table with a head",
        )
    rows = reader(path, read_text(path))
    if not rows:
        raise DataError(f"{path} holds no settings", "one object or one line makes one run")
    return rows


def _read_json(path: Path, text: str) -> list[dict[str, Any]]:
    try:
        rows = parse_json(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno} is not JSON: {error.msg}", "correct it there"
        ) from error
    except ValueError as error:
        raise DataError(f"{path} can't be used: {error}", "correct it there") from error
    if not isinstance(rows, list):
        raise DataError(
            f"{path} holds no list", 'write a list of objects, such as [{"rank": 8}, {"rank": 32}]'
        )
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"{path}, index {index} is {row!r}, not an object", 'write it like {"rank": 8}')
    return rows


def _read_csv(path: Path, text: str) -> list[dict[str, Any]]:
    return [
        {name: parse_value(name, cell.strip()) for name, cell in row.items()}
        for row in read_table(path, text)
    ]
