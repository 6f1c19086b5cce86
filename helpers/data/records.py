"""From files to records: `.json`, `.jsonl`, `.csv`, `.tsv` and `.parquet`, each perhaps packed as `.gz` or
`.zst`, and data sets of the hub in, one form of record out.

    data = load_data("tickets.csv", columns="instruction=text,output=label")
    data.records                        # a list of records
    print(data)                         # which column became what

Every record that leaves here has `instruction`, `input` (may be empty) and `output`, all text, and, where its
source has them, `answer`, `category`, `template`, `unseen`, `steps` and `id`; one of a conversation has its
`messages` and `tools` too. Records that can't be used are
one error, with file, line or index, and field of each: dropping them in silence would change what the numbers
of a run mean. `skip_bad=True` leaves them out, and they are counted and kept.

forms.py says which forms of record are known, columns.py what happens to others.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers.data.columns import TALK, apply_columns, check_columns, guess_columns, parse_columns
from helpers.data.csv_files import read_csv
from helpers.data.forms import BESIDE_TEXT, Shape, check_text_only, known_form, normalise_record, shape_of
from helpers.data.hub import HUB, load_hub
from helpers.data.json_files import json_lines, json_list
from helpers.data.packed import data_bytes, data_text, plain_suffix
from helpers.data.parquet_files import read_parquet
from helpers.data.rows import BadRow, Row, refuse, save_skipped
from helpers.errors import DataError
from helpers.paths import ROOT
from helpers.text import plural, printable

JSON_SUFFIXES = (".json", ".jsonl")
SUFFIXES = (*JSON_SUFFIXES, ".csv", ".tsv", ".parquet")
NO_FILE = ("no data file is named", "name at least one, such as data/word_problems.json")
NOT_THERE = (
    "check the path: after --data, relative ones start at the current folder; in a notebook, at the project's"
)
SKIP = "or leave such records out: --skip-bad, in a notebook skip_bad=True"


@dataclass(frozen=True)
class Source:
    """A file or data set that was read.

    Attributes:
        name: its path, or the name of the data set as the user gave it.
        form: how it was read, such as `JSON, guide or Alpaca` or `CSV, separated by commas`.
        records: how many were taken.
        columns: field of the course's record to the column that it comes from.
        unused: columns that go nowhere, in some rows or in all.
        skipped: rows that can't be used and were left out.
    """

    name: str
    form: str
    records: int
    columns: dict[str, str]
    unused: list[str]
    skipped: int = 0

    def __str__(self) -> str:
        lines = [f"{self.name}: {plural(self.records, 'record')} ({self.form})"]
        lines += [f"  {name:11} ← {column}" for name, column in self.columns.items() if name != column]
        same = [name for name, column in self.columns.items() if name == column]
        lines += [
            f"  {what}: {', '.join(names)}"
            for what, names in (("as they are", same), ("not used", self.unused))
            if names
        ]
        if self.skipped:
            lines.append(f"  left out, since they can't be used: {self.skipped:,}")
        return printable("\n".join(lines))


@dataclass(frozen=True)
class Data:
    """Records of all sources in order. Printed, it says how each source was read.

    Attributes:
        skipped: rows that were left out, with the reason of each.
    """

    records: list[dict[str, Any]] = field(repr=False)
    sources: list[Source]
    skipped: list[BadRow] = field(default_factory=list, repr=False)

    def __str__(self) -> str:
        return "\n".join(map(str, self.sources))

    def save_skipped(self, folder: str | Path) -> list[str]:
        """Write `skipped.jsonl`, if rows were left out: `source`, `row`, `reason` and `record` of each.

        Returns:
            The names of the files: one or none.

        Raises:
            RunError: the folder can't be written.
        """
        return save_skipped(self.skipped, folder)


def load_data(
    data_files: str, columns: str = "", instruction: str = "", root: Path = ROOT, skip_bad: bool = False
) -> Data:
    """Read examples from files and data sets, as notebook 01 does.

    Args:
        data_files: paths, and names of data sets (`hub:OWNER/NAME`: see helpers/data/hub.py), separated by
            commas.
        columns: which column becomes which field, for all sources: `instruction=text,output=label`. Empty: by
            form, or by obvious names.
        instruction: one instruction for all records; each one's own text becomes its `input`.
        root: the folder from which relative paths start; the project's by default.
        skip_bad: leave out rows that can't be used, instead of refusing the data.

    Raises:
        DataError: a source can't be read, its columns are not clear, or records can't be used: one error for
            all of them, with their places.
    """
    chosen, read = parse_columns(columns), []
    for place in data_paths(data_files, root):
        rows, kind = _read_hub(place) if isinstance(place, str) else _read_file(place)
        read.append(_one_source(place, source_name(place, root), rows, kind, chosen, instruction.strip()))
    if not read:
        raise DataError(*NO_FILE)
    records = [record for found, _, _ in read for record in found]
    bad = [row for _, _, wrong in read for row in wrong]
    if bad and not (skip_bad and records):
        raise refuse(bad, len(records) + len(bad), SKIP if records else "")
    return Data(records, [source for _, source, _ in read], bad)


def _one_source(
    place: Path | str, name: str, rows: list[Row], kind: str, chosen: dict[str, str], instruction: str
) -> tuple[list[dict[str, Any]], Source, list[BadRow]]:
    """Records of one source, how it was read, and its rows that can't be used."""
    shapes = _shapes(rows)
    known = sum(count for shape, count in shapes.items() if known_form(shape))
    if not shapes or (not chosen and not instruction and known * 2 > shapes.total()):
        records, bad = _records(place, rows, normalise_record)
        forms, columns, unused = _forms(shapes)
        return records, Source(name, f"{kind}, {forms}", len(records), columns, unused, len(bad)), bad
    names = list(dict.fromkeys(column for shape in shapes for column, _ in shape))
    used = chosen or guess_columns(names, name, instruction)
    check_columns(used, names, name, instruction)
    unused = [column for column in names if column not in used.values()]

    def make(row: dict[str, Any]) -> dict[str, Any]:
        if not chosen:
            check_text_only(row)
        if used.keys() & TALK:
            named = {field: row.get(column) for field, column in used.items()}
            return normalise_record(named | ({"instruction": instruction} if instruction else {}))
        return apply_columns(row, used, instruction)

    records, bad = _records(place, rows, make)
    return records, Source(name, kind, len(records), used, unused, len(bad)), bad


def _shapes(rows: list[Row]) -> Counter[Shape]:
    """The shapes of the rows that can be read, in order of their first."""
    return Counter(shape_of(row.value) for row in rows if row.fault is None and isinstance(row.value, dict))


def _records(
    place: Path | str, rows: list[Row], make: Callable[[dict[str, Any]], dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[BadRow]]:
    """What `make` makes of each row, and the rows that can't be used."""
    records, bad = [], []
    for row in rows:
        try:
            if row.fault:
                raise row.fault
            records.append(make(row.value) if isinstance(row.value, dict) else normalise_record(row.value))
        except DataError as error:
            bad.append(BadRow(str(place), row.where, error.what, error.fix, row.value))
    return records, bad


def _forms(shapes: Iterable[Shape]) -> tuple[str, dict[str, str], list[str]]:
    """The forms of rows, which columns become what, and those that some row has and does not use."""
    forms: dict[str, None] = {}
    columns: dict[str, dict[str, None]] = {}
    unused: dict[str, None] = {}
    for shape in shapes:
        if form := known_form(shape):
            forms[form.name] = None
            for name, column in form.columns.items():
                columns.setdefault(name, {})[column] = None
            known = {*form.used, *BESIDE_TEXT}
            unused |= dict.fromkeys(column for column, _ in shape if column not in known)
    return " and ".join(forms), {name: " or ".join(found) for name, found in columns.items()}, list(unused)


def load_json_files(paths: str | Path | Iterable[str | Path]) -> list[dict[str, Any]]:
    """Read examples from one or more `.json` (a list of records) and `.jsonl` (a record a line) files, in
    order. Prints a line for each file with fields that are not used.

    Args:
        paths: one path or several; the forms of record may differ from file to file and within one.

    Returns:
        Records with `instruction`, `input` and `output`, and optional fields (see the top of this module).

    Raises:
        DataError: a file is missing, empty, no text, not JSON, or holds records that can't be used: one error
            for all of them.
    """
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    if not paths:
        raise DataError(*NO_FILE)
    for path in map(Path, paths):
        if plain_suffix(path) not in JSON_SUFFIXES:
            raise DataError(
                f"{path} is neither .json nor .jsonl",
                "name a .json file (a list of records) or a .jsonl file",
            )
    files = [(path, _read_file(path)[0]) for path in map(Path, paths)]
    read = [_records(path, rows, normalise_record) for path, rows in files]
    records = [record for found, _ in read for record in found]
    if bad := [row for _, wrong in read for row in wrong]:
        raise refuse(bad, len(records) + len(bad))
    for path, rows in files:
        if unused := _forms(_shapes(rows))[2]:
            print(printable(f"{path}: not used: {', '.join(unused)}"), flush=True)
    return records


def data_paths(text: str, root: Path) -> list[Path | str]:
    """What a comma-separated parameter names: paths, relative ones taken from `root`, and data sets of the
    hub, as text.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return [part if part.startswith(HUB) else root / part for part in parts]


def source_name(place: Path | str, root: Path) -> str:
    """What to call a file or data set: below `root`, the path from there."""
    return str(place.relative_to(root) if isinstance(place, Path) and place.is_relative_to(root) else place)


def _read_file(path: Path) -> tuple[list[Row], str]:
    """The rows of a file, and what kind of file it is."""
    suffix = plain_suffix(path)
    if suffix not in SUFFIXES:
        raise DataError(
            f"{path} is neither {', '.join(SUFFIXES[:-1])} nor {SUFFIXES[-1]}",
            "name a .json file (a list of records), .jsonl (a record a line), .csv or .tsv (the first line "
            "names the columns) or .parquet; each may be packed: .gz, .zst",
        )
    if suffix == ".parquet":
        return read_parquet(path, data_bytes(path, NOT_THERE)), "Parquet"
    text = data_text(path, NOT_THERE)
    if not text.strip():
        raise DataError(f"{path} is empty", "put at least ten records into it, or name another file")
    if suffix == ".jsonl":
        return json_lines(path, text), "JSON Lines"
    if suffix == ".json":
        return json_list(path, text), "JSON"
    rows, delimiter = read_csv(path, text)
    return rows, f"{suffix[1:].upper()}, separated by {delimiter}s"


def _read_hub(name: str) -> tuple[list[Row], str]:
    data = load_hub(name)
    if not data.rows:
        raise DataError(f"{name}, split {data.split} has no rows", "name another split: hub:OWNER/NAME#SPLIT")
    revision = f", revision {data.revision[:12]}" if data.revision else ""
    rows = [Row(f"row {number}", row) for number, row in enumerate(data.rows)]
    return rows, f"data set, split {data.split}{revision}"
