"""Tables as text: the one reader of CSV, for data files, benchmarks, settings of a sweep and keys of a class.

rows, delimiter = read_csv(path, text)                # a data file: a header; rows with their places
for row in read_table(path, text):                    # any table with a header: {column: cell}
for line, cells in read_cells(path, text):            # one without
"""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helpers.data.packed import plain_suffix
from helpers.data.rows import Row
from helpers.errors import DataError

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}
SEPARATOR_LINE = re.compile(r'"?sep=([^\r\n"])"?\r?\n', re.IGNORECASE)
NOT_TEXT = {"unseen": {"true": True, "false": False}}  # the one field of a record that is no text


def read_csv(path: Path, text: str) -> tuple[list[Row], str]:
    """Rows of a data file, and what separates its columns.

    Args:
        path: the file, for the error; a `.tsv` is separated by tabs.
        text: what is in it. Cells may be quoted, and hold line breaks then.

    Returns:
        Rows with column to cell, without the empty cells and blank lines; one whose cells don't fit the
        header holds these, and its fault. And `comma`, `semicolon`, `tab` or `pipe`.

    Raises:
        DataError: a quote is not closed, or the header can't be used.
    """
    delimiter, text = _delimiter(path, text)
    rows: list[Row] = []
    for row in _rows(path, text, delimiter, fewest=2):
        if not row.fault and not row.value:
            continue  # empty cells only
        if not row.fault:
            typed = {
                name: NOT_TEXT.get(name, {}).get(cell.strip().casefold(), cell)
                for name, cell in row.value.items()
            }
            row = Row(row.where, typed)
        rows.append(row)
    if not rows:
        raise DataError(
            f"{path} has a header and no row", "put at least ten rows into it, or name another file"
        )
    return rows, DELIMITERS.get(delimiter, delimiter)


def read_table(path: Path, text: str) -> list[dict[str, str]]:
    """Column to cell for each row of a table with a header, without the empty cells and blank lines.

    Raises:
        DataError: as `read_csv`, or a row has more or fewer cells than the header.
    """
    delimiter, text = _delimiter(path, text)
    found = []
    for row in _rows(path, text, delimiter):
        if row.fault:
            raise DataError(f"{path}, {row.where}: {row.fault.what}", row.fault.fix)
        found.append(row.value)
    return found


def _rows(path: Path, text: str, delimiter: str, fewest: int = 1) -> Iterator[Row]:
    """The rows below the header, which has at least `fewest` columns."""
    header: list[str] = []
    count = 0
    for line, cells in read_cells(path, text, delimiter):
        if not header:
            if any(cell.strip() for cell in cells):
                header = _header(f"{path}, line {line}", cells, fewest)
            continue
        count += 1
        where = f"row {count} (line {line})"
        if len(cells) == len(header):
            yield Row(where, {name: cell for name, cell in zip(header, cells, strict=True) if cell.strip()})
            continue
        sign = DELIMITERS.get(delimiter, repr(delimiter))
        fault = DataError(
            f"{len(cells)} cells, but the header has {len(header)} columns ({', '.join(header)})",
            f"columns are separated by a {sign}: put a cell that holds one in double quotes",
        )
        yield Row(where, cells, fault)


def read_cells(path: Path, text: str, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """(line at which it begins, cells) of each row; blank lines left out.

    Raises:
        DataError: a quote is not closed.
    """
    reader, start = _reader(text, delimiter, strict=True), 1
    try:
        for cells in reader:
            if len(cells) > 1 or any(cell.strip() for cell in cells):
                yield start, cells
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}, from line {start}: {error}",
            'close the double quote; a quote inside a cell is written twice: "say ""hello"" to"',
        ) from error


def _reader(text: str, delimiter: str, strict: bool) -> Any:
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # a cell may be as long as the file
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=strict)


def split_cells(text: str) -> list[str]:
    """One line separated by commas; a part with a comma in it stands in double quotes.

    Raises:
        DataError: the quotes are wrong.
    """
    try:
        return next(csv.reader([text], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        raise DataError(
            f"{text!r} is no list separated by commas: {error}", 'write each double quote in pairs: "a,b",c'
        ) from error


def _delimiter(path: Path, text: str) -> tuple[str, str]:
    """What separates the columns, and the text without the line in which Excel may say so."""
    if said := SEPARATOR_LINE.match(text):
        return said[1], "\n" + text[said.end() :]  # a blank line, so that lines keep their numbers
    if plain_suffix(path) == ".tsv":
        return "\t", text
    head = text.lstrip("\r\n ")
    counts = {sign: len(next(_reader(head, sign, strict=False), [])) for sign in DELIMITERS}
    return max(counts, key=counts.__getitem__), text


def _header(where: str, cells: list[str], fewest: int) -> list[str]:
    names = [cell.strip() for cell in cells]
    if len(names) < fewest:
        raise DataError(
            f"{where}: the table has one column only, {names[0]!r}",
            "the first line names the columns, separated by commas, semicolons, tabs or pipes (|)",
        )
    for number, name in enumerate(names, start=1):
        if not name or names.count(name) > 1:
            lacks = f"has the name {name!r} of another one" if name else "has no name"
            raise DataError(
                f"{where}: column {number} {lacks}",
                "the first line names each column, each with another name",
            )
    return names
