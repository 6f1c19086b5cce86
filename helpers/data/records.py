"""From files to records: `.json`, `.jsonl`, `.csv`, `.tsv` and data sets of the hub in, one form of record
out.

    data = load_data("tickets.csv", columns="instruction=text,output=label")
    data.records                        # a list of records
    print(data)                         # which column became what

Every record that leaves here has `instruction`, `input` (may be empty) and `output`, all text, and, where its
source has them, `answer`, `category`, `template`, `unseen`, `steps` and `id`. A record that can't be used is
an error with its file, its line or index, and its field: dropping it in silence would change what the numbers
of a run mean.

forms.py says which forms of record are known, columns.py what happens to others.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers.data.columns import apply_columns, check_columns, guess_columns, parse_columns
from helpers.data.csv_files import read_csv
from helpers.data.forms import FORMS, kind_of, known_form, normalise_record
from helpers.data.hub import HUB, load_hub
from helpers.errors import DataError
from helpers.paths import ROOT

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv")


@dataclass(frozen=True)
class Source:
    """A file or data set that was read.

    Attributes:
        name: its path, or the name of the data set as the user gave it.
        form: how it was read, such as `JSON, guide or Alpaca` or `CSV, separated by commas`.
        records: how many there are.
        columns: field of the course's record to the column that it comes from.
        unused: columns that go nowhere.
    """

    name: str
    form: str
    records: int
    columns: dict[str, str]
    unused: list[str]

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.records:,} records ({self.form})"]
        lines += [f"  {name:11} ← {column}" for name, column in self.columns.items() if name != column]
        same = [name for name, column in self.columns.items() if name == column]
        lines += [
            f"  {what}: {', '.join(names)}"
            for what, names in (("as they are", same), ("not used", self.unused))
            if names
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class Data:
    """Records of all sources in order. Printed, it says how each source was read."""

    records: list[dict[str, Any]] = field(repr=False)
    sources: list[Source]

    def __str__(self) -> str:
        return "\n".join(map(str, self.sources))


def load_data(data_files: str, columns: str = "", instruction: str = "", root: Path = ROOT) -> Data:
    """Read examples from files and data sets, as notebook 01 does.

    Args:
        data_files: paths, and names of data sets (`hub:OWNER/NAME`: see helpers/data/hub.py), separated by
            commas.
        columns: which column becomes which field, for all sources: `instruction=text,output=label`. Empty: by
            form, or by obvious names.
        instruction: one instruction for all records, whose own text is then the `input`.
        root: the folder from which relative paths start; the project's by default.

    Raises:
        DataError: a source can't be read, its columns are not clear, or a record can't be used.
    """
    chosen, records, sources = parse_columns(columns), [], []
    for place in data_paths(data_files, root):
        rows, kind = _read_hub(place) if isinstance(place, str) else _read_file(place)
        found, source = _one_source(source_name(place, root), rows, kind, chosen, instruction.strip())
        records += found
        sources.append(source)
    if not sources:
        raise DataError("no data file is named", "name at least one, such as data/word_problems.json")
    return Data(records, sources)


def _one_source(
    name: str, rows: list[tuple[str, Any]], kind: str, chosen: dict[str, str], instruction: str
) -> tuple[list[dict[str, Any]], Source]:
    """Records of one source, and how it was read."""
    names = _names(rows)
    form = None if chosen or instruction else known_form(rows[0][1], names)
    if form:
        known, used = form
        columns = {column.partition(": ")[0] for column in used.values()}
        unused = [column for column in rows[0][1] if column not in columns]
        records = [normalise_record(row, where) for where, row in rows]
        return records, Source(name, f"{kind}, {known}", len(rows), used, unused)
    used = chosen or guess_columns(names, name, instruction)
    check_columns(used, names, name, instruction)
    unused = [column for column in names if column not in used.values()]
    records = [apply_columns(row, used, instruction, where) for where, row in rows]
    return records, Source(name, kind, len(rows), used, unused)


def load_json_files(paths: str | Path | Iterable[str | Path]) -> list[dict[str, Any]]:
    """Read examples from one or more `.json` (a list of records) and `.jsonl` (a record a line) files, in
    order.

    Args:
        paths: one path or several; the forms of record may differ from file to file and within one.

    Returns:
        Records with `instruction`, `input` and `output`, and optional fields (see the top of this module).

    Raises:
        DataError: a file is missing, empty, not UTF-8, not JSON, or holds a record that can't be used.
    """
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    if not paths:
        raise DataError("no data file is named", "name at least one, such as data/word_problems.json")
    for path in map(Path, paths):
        if path.suffix not in (".json", ".jsonl"):
            raise DataError(
                f"{path} is neither .json nor .jsonl",
                "name a .json file (a list of records) or a .jsonl file",
            )
    return [normalise_record(row, where) for path in paths for where, row in _read_file(Path(path))[0]]


def data_paths(text: str, root: Path) -> list[Path | str]:
    """What a comma-separated parameter names: paths, relative ones taken from `root`, and data sets of the
    hub, as text.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return [part if part.startswith(HUB) else root / part for part in parts]


def source_name(place: Path | str, root: Path) -> str:
    """What to call a file or data set: below `root`, the path from there."""
    return str(place.relative_to(root) if isinstance(place, Path) and place.is_relative_to(root) else place)


def _read_file(path: Path) -> tuple[list[tuple[str, Any]], str]:
    """(where, row) for each row of a file, and what kind of file it is."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(
            f"{path} is neither {', '.join(SUFFIXES[:-1])} nor {SUFFIXES[-1]}",
            "name a .json file (a list of records), .jsonl (a record a line), .csv or .tsv (the first line "
            "names the columns)",
        )
    text = _read_text(path)
    if suffix in (".json", ".jsonl"):
        return (
            (_json_lines(path, text), "JSON Lines")
            if suffix == ".jsonl"
            else (_json_list(path, text), "JSON")
        )
    rows, delimiter = read_csv(path, text)
    return rows, f"{suffix[1:].upper()}, separated by {delimiter}s"


def _read_hub(name: str) -> tuple[list[tuple[str, Any]], str]:
    data = load_hub(name)
    if not data.rows:
        raise DataError(f"{name}, split {data.split} has no rows", "name another split: hub:OWNER/NAME#SPLIT")
    revision = f", revision {data.revision[:12]}" if data.revision else ""
    return [
        (f"{name}, row {number}", row) for number, row in enumerate(data.rows)
    ], f"data set, split {data.split}{revision}"


def _names(rows: list[tuple[str, Any]]) -> list[str]:
    """All columns that rows have, in order."""
    for where, row in rows:
        if not isinstance(row, dict):
            normalise_record(row, where)  # raises: it is no record
    return list(dict.fromkeys(name for _, row in rows for name in row))


def _read_text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        fix = (
            "check the path: after --data, relative ones start at the current folder; in a notebook, at the "
            "project's"
        )
        raise DataError(f"{path} does not exist", fix) from error
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder, not a file", "name the .json or .jsonl files in it") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8: byte {error.start} can't be read",
            f"save it as UTF-8. If it is Chinese, for example: iconv -f GB18030 -t UTF-8 {path.name} > "
            f"utf8-{path.name} "
            "(Western European: CP1252 for GB18030)",
        ) from error
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror}", "check its permissions") from error
    if not text.strip():
        raise DataError(f"{path} is empty", "put at least ten records into it, or name another file")
    return text


def _json_list(path: Path, text: str) -> list[tuple[str, Any]]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        fix = "correct it there; a missing comma, quote or bracket is the usual cause"
        if error.msg == "Extra data":
            fix = "one JSON object a line is JSON Lines: rename the file to .jsonl"
        raise DataError(
            f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}", fix
        ) from error
    except RecursionError as error:
        raise DataError(f"{path} is nested too deeply to read", FORMS) from error
    if not isinstance(value, list):
        raise DataError(
            f"{path} holds {kind_of(value)}, not a list of records",
            "put the records in a list: [ {...}, {...} ]",
        )
    if not value:
        raise DataError(
            f"{path} holds an empty list", "put at least ten records into it, or name another file"
        )
    return [(f"{path}, index {index}", row) for index, row in enumerate(value)]


def _json_lines(path: Path, text: str) -> list[tuple[str, Any]]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append((f"{path}, line {number}", json.loads(line)))
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {number} is not JSON: {error.msg} at column {error.colno}",
                "each line must be one whole JSON object",
            ) from error
    return rows
