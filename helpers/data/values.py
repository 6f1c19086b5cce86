"""Values of a record, as text."""

import math
from typing import Any

from helpers.errors import DataError

NAMES = {
    dict: "an object",
    list: "a list",
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number",
}


def kind_of(value: Any) -> str:
    """What a value is, to a reader: `a list`, `null`."""
    return NAMES.get(type(value), "null" if value is None else type(value).__name__)


def plain_text(value: Any) -> str | None:
    """Text, a number or a truth value as text, nothing as no text; None for what is none of these."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, (str, int, float)) else None


def text_of(row: dict[str, Any], field: str, needed: bool = True) -> str:
    """A field that is text, or a number.

    Args:
        needed: whether it has to hold something; else it is empty if it is missing or null.

    Raises:
        DataError: it is missing, empty, or of another type.
    """
    value = row.get(field)
    if value is None:
        if not needed:
            return ""
        raise DataError(f"field '{field}' is missing", "fill it in, or take the record out")
    text = None if isinstance(value, bool) else plain_text(value)
    if text is None:
        raise DataError(f"field '{field}' is {kind_of(value)}, not text", "put its value in quotes")
    if needed and not text.strip():
        raise DataError(f"field '{field}' is empty", "fill it in, or take the record out")
    return text
