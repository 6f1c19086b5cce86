"""Rows as they stand in a source, and one error for all that can't be used."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from helpers.errors import DataError
from helpers.files import write_text

KINDS_SHOWN = 12
ROWS_SHOWN = 5
SKIPPED_FILE = "skipped.jsonl"


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a source.

    Attributes:
        where: its place there: `line 3`, `index 3`, `row 3 (line 4)`.
        value: what it holds; the text as it stands there if it can't be read.
        fault: why it can't be read; None for most.
    """

    where: str
    value: Any
    fault: DataError | None = None


@dataclass(frozen=True)
class BadRow:
    """A row that is no usable record, and why."""

    source: str
    where: str
    reason: str
    fix: str = field(repr=False)
    record: Any = field(repr=False)


def refuse(bad: Sequence[BadRow], total: int, otherwise: str = "") -> DataError:
    """One error for all bad rows, grouped by the reason.

    Args:
        bad: one or more, in order.
        total: rows in all sources.
        otherwise: what else can be done than to correct them.
    """
    kinds: dict[str, list[BadRow]] = defaultdict(list)
    for row in bad:
        kinds[row.reason].append(row)
    fix = "; ".join(filter(None, (bad[0].fix, otherwise)))
    if len(bad) == 1:
        return DataError(f"{bad[0].source}, {bad[0].where}: {bad[0].reason}", fix)
    lines = [f"{len(bad):,} of {total:,} records can't be used:"]
    lines += [f"  {_places(rows)}: {reason}" for reason, rows in list(kinds.items())[:KINDS_SHOWN]]
    if len(kinds) > KINDS_SHOWN:
        lines.append(f"  and {len(kinds) - KINDS_SHOWN} other reasons")
    return DataError("\n".join(lines), fix)


def _places(rows: Sequence[BadRow]) -> str:
    """`a.json, index 1, index 4; b.json, index 2 and 312 more`."""
    shown = groupby(rows[:ROWS_SHOWN], key=lambda row: row.source)
    text = "; ".join(", ".join([source, *(row.where for row in group)]) for source, group in shown)
    more = len(rows) - ROWS_SHOWN
    return f"{text} and {more:,} more" if more > 0 else text


def save_skipped(bad: Sequence[BadRow], folder: str | Path) -> list[str]:
    """Write the rows that were left out, a JSON object a line: `source`, `row`, `reason`, `record`.

    A file of an earlier try is taken away if there are none.

    Returns:
        The names of the files: one or none.

    Raises:
        RunError: the folder can't be written.
    """
    path = Path(folder) / SKIPPED_FILE
    if not bad:
        path.unlink(missing_ok=True)
        return []
    rows = [
        {"source": row.source, "row": row.where, "reason": row.reason, "record": row.record} for row in bad
    ]
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows))
    return [path.name]
