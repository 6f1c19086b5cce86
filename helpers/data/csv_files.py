"""Tables as text: `.csv` and `.tsv` files with a header, in UTF-8."""

import csv
import io
from pathlib import Path
from typing import Any

from helpers.errors import DataError

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}
NOT_TEXT = {"unseen": {"true": True, "false": False}}  # the one field of a record that is no text


def read_csv(path: Path, text: str) -> tuple[list[tuple[str, dict[str, Any]]], str]:
    """Rows of a table, and what parts its columns.

    Args:
        path: the file, for the error; a `.tsv` is parted by tabs.
        text: what is in it. Cells may be quoted, and hold line breaks then.

    Returns:
        (where, column to cell) for each row, blank lines left out, without the empty cells; and `comma`, `semicolon` or `tab`.

    Raises:
        DataError: a row has more or fewer cells than the header, a quote is not closed, or the header can't be used.
    """
    delimiter = "\t" if path.suffix == ".tsv" else _sniff(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    rows: list[tuple[str, dict[str, Any]]] = []
    start = 1  # the line at which the row begins
    try:
        for cells in reader:
            where = f"{path}, row {len(rows) + 1} (line {start})"
            start = reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = _header(path, cells)
            elif len(cells) != len(header):
                raise DataError(
                    f"{where}: {len(cells)} cells, but the header names {len(header)} columns ({', '.join(header)})",
                    f"columns are parted by a {DELIMITERS[delimiter]}: put a cell that holds one in double quotes",
                )
            else:
                rows.append(
                    (
                        where,
                        {
                            name: NOT_TEXT.get(name, {}).get(cell.strip().casefold(), cell)
                            for name, cell in zip(header, cells)
                            if cell.strip()
                        },
                    )
                )
    except csv.Error as error:
        raise DataError(
            f"{path}, row {len(rows) + 1} (from line {start}): {error}",
            'close the double quote; a quote inside a cell is written twice: "say ""hello"" to"',
        ) from error
    if not rows:
        raise DataError(
            f"{path} has a header and no row", "put at least ten rows into it, or name another file"
        )
    return rows, DELIMITERS[delimiter]


def _sniff(text: str) -> str:
    """The sign that parts the header into most columns; the comma if none parts it."""
    counts = {
        sign: len(next(csv.reader(io.StringIO(text.lstrip(), newline=""), delimiter=sign), []))
        for sign in DELIMITERS
    }
    return max(counts, key=counts.__getitem__)


def _header(path: Path, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if len(names) < 2:
        raise DataError(
            f"{path} has one column only, {names[0]!r}",
            "the first line names the columns, parted by commas, semicolons or tabs",
        )
    for number, name in enumerate(names, start=1):
        if not name or names.count(name) > 1:
            raise DataError(
                f"{path}, line 1: column {number} {f'has the name {name!r} of another one' if name else 'has no name'}",
                "the first line names each column, each with another name",
            )
    return names
