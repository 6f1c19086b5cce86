"""Tool calls: does an answer make the calls of the reference.

A call counts by its name and its arguments, compared as JSON: the order of keys makes no difference, nor
does `3.0` for `3`; text and numbers are compared exactly, since a function takes them as they are. Several
calls may come in any order. Calls are read from JSON, alone, in `<tool_call>` or in a code fence: `name` with
`arguments` or `parameters`, or OpenAI's form. Where the reference is text, the answer must be that text and
call nothing.
"""

import json
import re
from typing import Any

from helpers.evaluate.grading.math.answers import check_answer
from helpers.evaluate.grading.verdict import Verdict

MAX_LENGTH = 50_000
_FENCE = re.compile(r"```(?:json)?[ \t]*\n([^`]*)```", re.IGNORECASE)

Call = tuple[str, str]


def check_calls(model_output: str, expected_output: str) -> Verdict:
    """Whether an answer makes the tool calls of the reference, all of them and no other."""
    expected, found = read_calls(expected_output), read_calls(model_output)
    if expected is None:
        if found is None:
            return check_answer(model_output, expected_output)
        return Verdict(False, f"the answer calls {_names(found)}, and the reference is text", _shown(found))
    if found is None:
        return Verdict(False, "the answer holds no tool call that can be read", None, _shown(expected))
    passed = sorted(found) == sorted(expected)
    if passed:
        why = "the calls are the same"
    elif sorted(name for name, _ in found) != sorted(name for name, _ in expected):
        why = f"the answer calls {_names(found)}, not {_names(expected)}"
    else:
        why = f"{_names(found)} is called with other arguments"
    return Verdict(passed, why, _shown(found), _shown(expected))


def read_calls(text: str) -> list[Call] | None:
    """The tool calls of an answer, each as its name and canonical JSON arguments; None if it has none."""
    text = text.rpartition("</think>")[2].strip()
    if len(text) > MAX_LENGTH:
        return None
    wrapped = [part.partition("</tool_call>")[0] for part in text.split("<tool_call>")[1:]]
    texts = wrapped or _FENCE.findall(text) or [text]
    try:
        values = [json.loads(part, object_pairs_hook=_once) for part in texts]
        calls = [_call(one) for value in values for one in (value if isinstance(value, list) else [value])]
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    return calls or None


def _call(value: Any) -> Call:
    """Raises ValueError, TypeError or LookupError for what is no call."""
    if not isinstance(value, dict):
        raise TypeError
    if isinstance(value.get("function"), dict):
        _only(value, {"function", "id", "type", "index"})
        value = value["function"]
    _only(value, {"name", "arguments", "parameters", "id", "type"})
    if "arguments" in value and "parameters" in value:
        raise ValueError("arguments are there twice")
    name = value["name"]
    arguments = value["arguments"] if "arguments" in value else value["parameters"]
    if isinstance(arguments, str):
        arguments = json.loads(arguments, object_pairs_hook=_once)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise TypeError
    return name, json.dumps(_plain(arguments), sort_keys=True, ensure_ascii=False)


def _only(value: dict[str, Any], known: set[str]) -> None:
    if more := value.keys() - known:
        raise ValueError(f"no call has {more}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def _plain(value: Any) -> Any:
    """The value with whole numbers as such."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _names(calls: list[Call]) -> str:
    return ", ".join(name[:60] for name, _ in calls[:5])


def _shown(calls: list[Call]) -> str:
    return "; ".join(f"{name}({arguments})" for name, arguments in calls)[:500]
