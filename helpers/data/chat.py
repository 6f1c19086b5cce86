"""Chat data of all forms, as the messages of a conversation.

    read_chat([{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}])

OpenAI's messages have `role` and `content`, ShareGPT's `from` and `value`. What a message holds that is not
text, tool calls, thinking or a mark on training is refused by name.
"""

from typing import Any, cast

from helpers.data.conversation import Message
from helpers.data.tool_calls import call_from_text, list_of, read_calls
from helpers.data.values import kind_of, text_of
from helpers.errors import DataError
from helpers.files import parse_json

COLUMNS = ("messages", "conversations", "conversation")
ROLES = {
    **{name: name for name in ("system", "user", "assistant", "tool")},
    "developer": "system",
    **dict.fromkeys(("human",), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "model", "bot"), "assistant"),
    **dict.fromkeys(("function", "observation", "ipython", "tool_response"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "assistant"),
}
CALLS_AS_TEXT = ("function_call", "tool_call")  # roles of ShareGPT whose text is a call
THINKING = ("reasoning_content", "reasoning", "thinking")
MARKS = ("weight", "trainable")
OF_ROLE = {
    "assistant": ("tool_calls", "function_call", *THINKING, *MARKS),
    "tool": ("tool_call_id", "name", *MARKS),
}
SHAPE = "write [{'role': 'user', 'content': …}, {'role': 'assistant', 'content': …}]"
EMPTY: tuple[Any, ...] = (None, "", [], {})


def read_chat(messages: Any, system: str = "") -> list[Message]:
    """The messages of a conversation, in the one form; the last is the assistant's.

    Args:
        messages: what the column holds: a list, or JSON text of one.
        system: what stands before the first message; empty for nothing.

    Raises:
        DataError: it is no list of messages, a message holds something unknown, or the turns don't make a
            conversation that ends with an answer.
    """
    rows = list_of(messages, "'messages'", SHAPE)
    if not all(isinstance(row, dict) for row in rows):
        raise DataError("'messages' must be a list of objects with 'role' and 'content'", SHAPE)
    turns = [_message(row, f"message {number}") for number, row in enumerate(rows)]
    if system.strip() and not (turns and turns[0] == {"role": "system", "content": system}):
        if turns and turns[0]["role"] == "system":
            raise DataError("field 'system' and message 0 hold different system messages", "keep one of them")
        turns.insert(0, {"role": "system", "content": system})
    _check_turns(turns)
    return turns


def is_conversation(value: Any) -> bool:
    """Whether a cell holds messages: a list of them, JSON text of one as in tables, or a single one."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = parse_json(value)
        except ValueError:
            return False  # any text may begin with a bracket
    rows = value if isinstance(value, list) else [value]
    return bool(rows) and all(isinstance(row, dict) and _looks_said(row) for row in rows)


def _looks_said(row: dict[str, Any]) -> bool:
    openai = isinstance(row.get("role"), str) and bool(
        row.keys() & {"content", "tool_calls", "function_call"}
    )
    return openai or (isinstance(row.get("from"), str) and "value" in row)


def with_turns_before(history: Any, system: str, question: str, answer: str) -> list[Message]:
    """The messages of an Alpaca record: `history` is a list of pairs of a question and its answer.

    Raises:
        DataError: it is not.
    """
    shape = "write the earlier turns as pairs: [['question', 'answer'], …]"
    turns: list[Message] = [{"role": "system", "content": system}] if system.strip() else []
    for number, pair in enumerate(list_of(history, "field 'history'", shape)):
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError(f"field 'history', turn {number} is no pair of texts", shape)
        turns += _exchange(
            *(_text({"text": text}, f"field 'history', turn {number}", "text") for text in pair)
        )
    return turns + _exchange(question, answer)


def _exchange(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _message(row: dict[str, Any], where: str) -> Message:
    sharegpt = "from" in row and "role" not in row
    role_key, text_key = ("from", "value") if sharegpt else ("role", "content")
    filled = {key: value for key, value in row.items() if value not in EMPTY}
    named = filled.get(role_key)
    role = ROLES.get(named) if isinstance(named, str) else None
    if role is None:
        what = f"{where} has the role {named!r}" if named else f"{where} has no {role_key!r}"
        raise DataError(what, f"roles are {', '.join(ROLES)}")
    known = (role_key, text_key, *OF_ROLE.get(role, MARKS))
    if more := [key for key in filled if key not in known]:
        raise DataError(
            f"{where} has {', '.join(map(repr, more))}, which the course does not train on",
            f"put what is to be learned into {text_key!r}, and take the other keys out",
        )
    message = {"role": role, **_said(row, filled, named, where, text_key)}
    message |= {key: _text(filled, where, key) for key in ("tool_call_id", "name") if key in filled}
    thoughts = [key for key in THINKING if key in filled]
    if len(thoughts) > 1:
        raise DataError(f"{where} has {' and '.join(map(repr, thoughts))}", "keep one of them")
    if thoughts:
        message["reasoning_content"] = _text(filled, where, thoughts[0])
    return cast(Message, message | _mark(filled, where))


def _said(row: dict[str, Any], filled: dict[str, Any], role: Any, where: str, key: str) -> dict[str, Any]:
    """`content`, and `tool_calls` where there are any."""
    content = row.get(key)
    said_twice = [name for name in ("tool_calls", "function_call") if name in filled]
    if len(said_twice) + (role in CALLS_AS_TEXT) > 1:
        raise DataError(f"{where} says its calls in two ways", "keep 'tool_calls' and role 'assistant' only")
    if role in CALLS_AS_TEXT:
        return {"content": "", "tool_calls": call_from_text(_text(row, where, key), where)}
    if isinstance(content, list):
        content = _joined(content, where)
    calls = []
    if "tool_calls" in filled:
        calls = read_calls(filled["tool_calls"], where)
    elif "function_call" in filled:
        calls = read_calls([filled["function_call"]], where)
    may_be_empty = calls or (content == "" and ROLES[role] in ("system", "tool"))
    said: dict[str, Any] = {"content": _text({key: content}, where, key, needed=not may_be_empty)}
    return said | ({"tool_calls": calls} if calls else {})


def _joined(parts: list[Any], where: str) -> str:
    kinds = [part.get("type") if isinstance(part, dict) else kind_of(part) for part in parts]
    if other := [kind for kind in kinds if kind != "text"]:
        raise DataError(
            f"{where} has a part of type {other[0]!r}",
            "the course trains on text: keep parts of type 'text' only",
        )
    filled = [key for part in parts for key, value in part.items() if value]
    if more := [key for key in filled if key not in ("type", "text")]:
        raise DataError(f"{where} has a part with {more[0]!r}", "keep 'type' and 'text' only")
    return "".join(_text(part, where, "text", needed=False) for part in parts)


def _mark(filled: dict[str, Any], where: str) -> dict[str, bool]:
    """Whether to train on a message, where it says so."""
    marks = [filled[key] for key in MARKS if key in filled]
    if any(mark not in (0, 1) for mark in marks) or len(set(marks)) > 1:
        raise DataError(f"{where} has the weight {marks[0]!r}", "it is 1 to train on the message, or 0")
    return {"trainable": bool(marks[0])} if marks else {}


def _text(row: dict[str, Any], where: str, key: str, needed: bool = True) -> str:
    try:
        return text_of(row, key, needed)
    except DataError as error:
        raise DataError(f"{where}: {error.what}", error.fix) from error


def _check_turns(turns: list[Message]) -> None:
    """Refuse turns that don't lead from a question to an answer.

    Raises:
        DataError: says which turn is wrong.
    """
    roles = [turn["role"] for turn in turns]
    if not roles or roles[-1] != "assistant":
        last = f"the last message is of role {roles[-1]!r}" if roles else "there is no message"
        raise DataError(
            f"{last}, and what the model learns to write is the assistant's last answer",
            "end the conversation with the assistant's message",
        )
    if "user" not in roles:
        raise DataError(
            "no message is of role 'user'", "a conversation needs a question: add the user's message"
        )
    made: set[str] = set()
    for number, turn in enumerate(turns):
        if turn["role"] == "tool" and (number == 0 or roles[number - 1] not in ("assistant", "tool")):
            raise DataError(
                f"message {number} is a tool's answer, but the one before it is no call",
                "put the assistant's call before it",
            )
        made |= {call["id"] for call in turn.get("tool_calls", []) if "id" in call}
        if (wanted := turn.get("tool_call_id")) and made and wanted not in made:
            raise DataError(
                f"message {number} answers the call {wanted!r}, which no message before it makes",
                "correct its 'tool_call_id'",
            )
