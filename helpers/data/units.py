"""The task of notebook 11: a final answer that names its unit, such as "Final answer: 24 cards".

unit_of("Ana has 3 cards and gets 4. How many cards are there?")      # "cards"
"""

import re
from typing import Any

from helpers.errors import DataError


def unit_of(question: str) -> str | None:
    """What a word problem counts; None if its question doesn't say, as in "How many are left?"."""
    found = re.search(r"[Hh]ow many (?:more |good )?(\w+)", question)
    return found[1] if found and found[1] != "are" else None


def names_unit(answer: str, question: str) -> bool:
    """Whether an answer ends with the unit of its question."""
    unit = unit_of(question)
    return unit is not None and answer.strip().endswith(f" {unit}")


def with_unit(record: dict[str, Any]) -> dict[str, Any]:
    """A record whose answer ends with the unit of its question.

    Raises:
        DataError: the question names none.
    """
    unit = unit_of(record["instruction"])
    if unit is None:
        raise DataError(f"no unit is in {record['instruction']!r}", "leave out such records")
    return record | {"output": f"{record['output']} {unit}"}
