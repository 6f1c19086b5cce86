"""Tools in chat data, in OpenAI's form: what the assistant may call, and its calls."""

import json
from typing import Any

from helpers.data.conversation import ToolCall
from helpers.data.values import kind_of
from helpers.errors import DataError
from helpers.files import parse_json

TOOLS_SHAPE = "write [{'type': 'function', 'function': {'name': …, 'description': …, 'parameters': {…}}}]"
CALL_SHAPE = "write {'type': 'function', 'function': {'name': …, 'arguments': '{…}'}}, the arguments as JSON"
DEFINITION = {"name", "description", "parameters", "strict", "return"}


def list_of(value: Any, name: str, fix: str) -> list[Any]:
    """A list, or the one that a text holds as JSON, as tables do.

    Raises:
        DataError: it is neither.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = parse_json(value)
        except ValueError as error:
            raise DataError(f"{name} is text that can't be read as JSON: {error}", fix) from error
    if not isinstance(value, list):
        raise DataError(f"{name} is {kind_of(value)}, not a list", fix)
    return value


def read_tools(value: Any) -> list[dict[str, Any]]:
    """Definitions of tools in OpenAI's form; bare ones (`name`, `description`, `parameters`) are wrapped.

    Raises:
        DataError: one is no function with a name, or has more in it.
    """
    found = []
    for number, tool in enumerate(list_of(value, "'tools'", TOOLS_SHAPE)):
        where = f"tool {number}"
        function = _function(tool, where, TOOLS_SHAPE, {"type", "function"})
        _only(function, DEFINITION, where, TOOLS_SHAPE)
        if not isinstance(function.get("parameters", {}), dict):
            raise DataError(f"{where} has 'parameters' that are no object", TOOLS_SHAPE)
        found.append({"type": "function", "function": function})
    return found


def read_calls(value: Any, where: str) -> list[ToolCall]:
    """Tool calls in OpenAI's form: the arguments become JSON text of an object, if they are not yet.

    Raises:
        DataError: one has no name, has arguments that are no object, or has more in it.
    """
    calls = []
    for number, call in enumerate(list_of(value, f"{where}: 'tool_calls'", CALL_SHAPE)):
        place = f"{where}, call {number}"
        function = _function(call, place, CALL_SHAPE, {"type", "function", "id", "index"})
        _only(function, {"name", "arguments", "id", "type"}, place, CALL_SHAPE)
        names = {str(part["id"]) for part in (function, call) if part.get("id")}
        if len(names) > 1 or function.get("type") not in (None, "function"):
            raise DataError(f"{place} has two ids, or another type than 'function'", CALL_SHAPE)
        named = next(iter(names), None)
        found: ToolCall = {
            "type": "function",
            "function": {"name": function["name"], "arguments": _arguments(function.get("arguments"), place)},
        }
        calls.append(found | {"id": named} if named else found)
    return calls


def call_from_text(text: str, where: str) -> list[ToolCall]:
    """The call, or the list of calls, that a ShareGPT turn `function_call` holds as JSON.

    Raises:
        DataError: it holds no such thing.
    """
    stripped = text.strip()
    return read_calls(stripped if stripped.startswith("[") else f"[{stripped}]", where)


def _function(value: Any, where: str, fix: str, around: set[str]) -> dict[str, Any]:
    """The filled fields of a function, which may stand below the key `function` or not."""
    if not isinstance(value, dict):
        raise DataError(f"{where} is {kind_of(value)}, not an object", fix)
    if value.get("type") not in (None, "function"):
        raise DataError(f"{where} is of type {value['type']!r}", "the course knows the type 'function' only")
    inner = value.get("function")
    if isinstance(inner, dict):
        _only(value, around, where, fix)
    else:
        inner = {key: part for key, part in value.items() if key != "type"}
    filled = {key: part for key, part in inner.items() if part is not None}
    if not isinstance(filled.get("name"), str) or not filled["name"].strip():
        raise DataError(f"{where} has no 'name'", fix)
    return filled


def _only(found: dict[str, Any], known: set[str], where: str, fix: str) -> None:
    if more := [key for key, part in found.items() if key not in known and part is not None]:
        raise DataError(f"{where} has {', '.join(map(repr, more))}, which the course does not know", fix)


def _arguments(value: Any, where: str) -> str:
    """Arguments as JSON text, as it stands where it is text already."""
    if value is None or value == "":
        return "{}"
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        read = parse_json(text)
    except (ValueError, TypeError) as error:
        raise DataError(f"{where}: its arguments are no JSON: {error}", CALL_SHAPE) from error
    if not isinstance(read, dict):
        raise DataError(f"{where}: its arguments are {kind_of(read)}, not an object", CALL_SHAPE)
    return text
