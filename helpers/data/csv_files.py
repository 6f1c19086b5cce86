"""Tables as text, in UTF-8: the one reader of CSV, for data files, benchmarks, settings of a sweep and keys
of a class.

    rows, delimiter = read_csv(path, text)                # a data file: a header; , or ; or tab
    for where, row in read_table(path, text):             # any table with a header: {column: cell}
    for line, cells in read_cells(path, text):            # one without
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helpers.errors import DataError

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}
NOT_TEXT = {"unseen": {"true": True, "false": False}}  # the one field of a record that is no text


def read_csv(path: Path, text: str) -> tuple[list[tuple[str, dict[str, Any]]], str]:
    """Rows of a data file, and what separates its columns.

    Args:
        path: the file, for the error; a `.tsv` is separated by tabs.
        text: what is in it. Cells may be quoted, and hold line breaks then.

    Returns:
        (where, column to cell) for each row, blank lines left out, without the empty cells; and `comma`,
        `semicolon` or `tab`.

    Raises:
        DataError: a row has more or fewer cells than the header, a quote is not closed, or the header can't
            be used.
    """
    delimiter = "\t" if path.suffix == ".tsv" else _sniff(text)
    rows: list[tuple[str, dict[str, Any]]] = []
    for where, row in read_table(path, text, delimiter, fewest=2, empty_rows=False):
        found = {
            name: NOT_TEXT.get(name, {}).get(cell.strip().casefold(), cell) for name, cell in row.items()
        }
        rows.append((where, found))
    if not rows:
        raise DataError(
            f"{path} has a header and no row", "put at least ten rows into it, or name another file"
        )
    return rows, DELIMITERS[delimiter]


def read_table(
    path: Path, text: str, delimiter: str = ",", fewest: int = 1, empty_rows: bool = True
) -> Iterator[tuple[str, dict[str, str]]]:
    """(where, column to cell) for each row of a table with a header, without the empty cells.

    Args:
        fewest: columns that there must be.
        empty_rows: whether a row of empty cells counts; a blank line never does.

    Raises:
        DataError: as `read_csv`.
    """
    header: list[str] = []
    count = 0
    for line, cells in read_cells(path, text, delimiter):
        if not empty_rows and not any(cell.strip() for cell in cells):
            continue
        if not header:
            header = _header(path, cells, fewest)
            continue
        count += 1
        where = f"{path}, row {count} (line {line})"
        if len(cells) != len(header):
            raise DataError(
                f"{where}: {len(cells)} cells, but the header has {len(header)} columns "
                f"({', '.join(header)})",
                f"columns are separated by a {DELIMITERS[delimiter]}: put a cell that holds one in double "
                "quotes",
            )
        yield where, {name: cell for name, cell in zip(header, cells, strict=True) if cell.strip()}


def read_cells(path: Path, text: str, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """(line at which it begins, cells) of each row; blank lines left out.

    Raises:
        DataError: a quote is not closed.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    start = 1
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


def split_cells(text: str) -> list[str]:
    """One line separated by commas; a part with a comma in it stands in double quotes."""
    return next(csv.reader([text], skipinitialspace=True), [])


def _sniff(text: str) -> str:
    """The sign that separates the header into most columns; the comma if none does."""
    counts = {
        sign: len(next(csv.reader(io.StringIO(text.lstrip(), newline=""), delimiter=sign), []))
        for sign in DELIMITERS
    }
    return max(counts, key=counts.__getitem__)


def _header(path: Path, cells: list[str], fewest: int) -> list[str]:
    names = [cell.strip() for cell in cells]
    if len(names) < fewest:
        raise DataError(
            f"{path} has one column only, {names[0]!r}",
            "the first line names the columns, separated by commas, semicolons or tabs",
        )
    for number, name in enumerate(names, start=1):
        if not name or names.count(name) > 1:
            lacks = f"has the name {name!r} of another one" if name else "has no name"
            raise DataError(
                f"{path}, line 1: column {number} {lacks}",
                "the first line names each column, each with another name",
            )
    return names
