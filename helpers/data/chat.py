"""Chat records: `messages` of role and content, or ShareGPT's `conversations` of from and value."""

from typing import Any

from helpers.data.values import text_of
from helpers.errors import DataError

COLUMNS = ("messages", "conversations")
ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "developer": "system",
}
TOOL_ROLES = {"tool", "function", "function_call", "observation", "ipython"}
TOOL_KEYS = ("tool_calls", "function_call", "tool_call_id")
KEEP_TWO = "keep one user message and the assistant message after it (a system message may come first)"
NO_TOOLS = (
    "tool calls need a renderer with tools, and the course trains on text: take such records out, or write "
    "the call as text into 'content'"
)
SHAPE = "write [{'role': 'user', 'content': …}, {'role': 'assistant', 'content': …}]"


def read_chat(messages: Any, system: str = "") -> tuple[str, str]:
    """Question and answer of one exchange.

    Args:
        messages: what the column holds.
        system: what stands before the first message; empty for nothing.

    Raises:
        DataError: it is no list of messages, or more than one exchange, or a message holds what the course
            does not train on: tool calls, pictures, reasoning apart from the content.
    """
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise DataError("'messages' must be a list of objects with 'role' and 'content'", SHAPE)
    turns = [_turn(message, f"message {number}") for number, message in enumerate(messages)]
    roles = [role for role, _ in turns]
    if roles not in (["user", "assistant"], ["system", "user", "assistant"]):
        shown = ", ".join(roles[:6]) + (" …" if len(roles) > 6 else "")
        what = f"'messages' has the roles {shown or 'of nobody'}"
        raise DataError(f"{what}; the course trains on one question and one answer", KEEP_TWO)
    texts = [text for _, text in turns]
    return "\n".join(filter(None, [system, *texts[:-1]])), texts[-1]


def _turn(message: dict[str, Any], where: str) -> tuple[str, str]:
    """Role and text of a message."""
    role_key, text_key = ("from", "value") if "from" in message else ("role", "content")
    filled = {key: value for key, value in message.items() if value not in (None, "", [], {})}
    role = str(filled.get(role_key))
    if tools := [key for key in TOOL_KEYS if key in filled] or ([role] if role in TOOL_ROLES else []):
        raise DataError(f"{where} is of tools: {tools[0]!r}", NO_TOOLS)
    if more := [key for key in filled if key not in (role_key, text_key)]:
        raise DataError(
            f"{where} has {', '.join(map(repr, more))}, which the course does not train on",
            f"put what is to be learned into {text_key!r}, and take the other keys out",
        )
    return ROLES.get(role, role), _content(message.get(text_key), where, text_key)


def _content(content: Any, where: str, key: str) -> str:
    if isinstance(content, list):
        kinds = [part.get("type") if isinstance(part, dict) else None for part in content]
        if other := [kind for kind in kinds if kind != "text"]:
            raise DataError(
                f"{where} has a part of type {other[0]!r}",
                "the course trains on text: keep parts of type 'text' only",
            )
        content = "".join(str(part.get("text") or "") for part in content)
    try:
        return text_of({key: content}, key)
    except DataError as error:
        raise DataError(f"{where}: {error.what}", error.fix) from error
