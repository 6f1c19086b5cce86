"""Extraction: the fields of an answer, and whether they are those of the reference.

An answer is a JSON object, in a code fence or in a sentence or alone, or lines of the form `field: value`.
Right is one with all fields of the reference, no other, and the same values. What makes no difference:

- the order of fields; case, spaces and full-width forms; punctuation at the end of a value;
- how a plain number is written: `3`, `3.0` and `"3"` are one, `1,200` and `1200` too. Dates, codes with zeros
  in front and numbers with a unit are text: `2024-01-05` is not `2024-1-5`;
- null and empty fields, which count as not stated. So `{}`, `[]` and `{"person": null}` are the same.

Objects and lists inside count by their parts (`address.city`, `items.0`), lists in order. An answer with two
different objects, or with one field twice, can't be read.
"""

import json
import re
from decimal import Decimal
from typing import Any

from helpers.evaluate.grading.answer_text import short_runs, without_extras
from helpers.evaluate.grading.math.plain_text import tidy_unicode
from helpers.evaluate.grading.math.wording import normalise
from helpers.evaluate.grading.verdict import Verdict

_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL | re.IGNORECASE)
_MARKUP = " \t*_#>•-"
MAX_DEPTH = 20
MAX_FIELDS = 5000
_NUMBER = re.compile(r"[-+]?(?:0|[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d{0,30})(?:\.\d{1,30})?")


class _Unreadable(ValueError):
    """One field is there twice, or there is too much."""


def check_fields(model_output: str, expected_output: str) -> Verdict:
    """Whether an answer has the fields of the reference, all of them and no other, with the same values."""
    expected, found = read_fields(expected_output), read_fields(model_output)
    if expected is None:
        return Verdict(
            False, "the reference has no fields: it must be a JSON object or lines of `field: value`"
        )
    if found is None:
        why = "the answer holds no fields that can be read" if model_output.strip() else "the answer is empty"
        return Verdict(False, why, None, _shown(expected))
    wrong = [
        f"field {name!r} is {found[name]!r}, not {expected[name]!r}"
        for name in expected
        if found.get(name, expected[name]) != expected[name]
    ]
    wrong += [f"field {name!r} is missing" for name in expected if name not in found]
    wrong += [f"field {name!r} is too much" for name in found if name not in expected]
    same = f"all {len(expected)} fields are the same" if expected else "both state no field"
    why = "; ".join(wrong[:20]) or same
    return Verdict(not wrong, why, _shown(found), _shown(expected), {"wrong": wrong})


def read_fields(text: str) -> dict[str, str] | None:
    """Fields of an answer, names and values normalised; without empty ones. None if there is nothing to read.

    Args:
        text: holds a JSON object or list, or lines of `field: value`.
    """
    text = without_extras(short_runs(text.rpartition("</think>")[2])).strip()
    fence = _FENCE.search(text)
    try:
        objects = _objects(fence[1] if fence else text)
        if not objects and not fence:
            return _from_lines(text)
        flat = [_flat(value, "", {}) for value in objects]
    except (_Unreadable, RecursionError):
        return None
    return flat[0] if flat and all(one == flat[0] for one in flat) else None


def _objects(text: str) -> list[Any]:
    """The JSON objects in a text, or the one list that is all of it. Numbers stay as they are written."""
    decoder = json.JSONDecoder(object_pairs_hook=_once, parse_float=str, parse_int=str)
    found, place = [], 0
    opening = re.compile(r"[\[{]" if text.lstrip().startswith("[") else r"\{(?=\s*[\"}])")
    for _ in range(200):
        match = opening.search(text, place)
        if not match:
            break
        try:
            value, place = decoder.raw_decode(text, match.start())
            found.append(value)
        except json.JSONDecodeError:
            place = match.end()
        if len(found) > 20:
            break
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({normalise(name) for name, _ in pairs}) < len(pairs):
        raise _Unreadable
    return dict(pairs)


def _flat(value: Any, name: str, into: dict[str, str], depth: int = 0) -> dict[str, str]:
    """The values that are no objects or lists, each under its path."""
    if depth > MAX_DEPTH or len(into) > MAX_FIELDS:
        raise _Unreadable
    if isinstance(value, (dict, list)):
        for part, inner in value.items() if isinstance(value, dict) else enumerate(value):
            _flat(inner, f"{name}.{normalise(str(part))}".lstrip("."), into, depth + 1)
    elif text := _value(value):
        into[name] = text
    return into


def _from_lines(text: str) -> dict[str, str] | None:
    """`field: value` lines; a line without a colon goes on with the value before it."""
    found: dict[str, list[str]] = {}
    last = ""
    for line in tidy_unicode(text).splitlines():
        field, colon, value = line.lstrip(_MARKUP).partition(":")
        field = field.rstrip(_MARKUP)
        if colon and 0 < len(field) <= 60 and not set("{}") & set(field) and not value.startswith("//"):
            last = normalise(field)
            if last in found or len(found) > MAX_FIELDS:
                return None
            found[last] = [value.lstrip(_MARKUP[:4])]
        elif last and line.strip():
            found[last].append(line.strip())
    if not found:
        return None
    return {name: value for name, lines in found.items() if (value := _value(" ".join(lines)))}


def _value(value: Any) -> str:
    """A value as it is compared: plain numbers without thousands signs and needless zeros, else text without
    case.
    """
    if value is None or isinstance(value, bool):
        return "" if value is None else str(value).casefold()
    text = normalise(str(value)).strip("\"'`")
    if _NUMBER.fullmatch(text):
        number = Decimal(text.replace(",", ""))
        return format(number.normalize() if number else Decimal(0), "f")
    return text


def _shown(fields: dict[str, str]) -> str:
    return json.dumps(fields, ensure_ascii=False)[:500]
