"""A record as a conversation: a list of messages, the last of which is the answer.

record = conversation_record([system, question, answer])
conversation(record)                  # the same messages; for a one-turn record, the question and its answer

A record of one question and one answer holds `instruction`, `input` and `output`. One with more (a system
message, several exchanges, tools, thinking, marks on what to train on) also holds `messages`, in OpenAI's
form, and perhaps `tools`. Its `instruction` is then the last thing that the user said, apart from its `input`
if its source has one, and its `output` the last answer, for graders and listings.
"""

import json
from collections.abc import Sequence
from typing import Any, Literal, Required, TypedDict


class Function(TypedDict):
    """`arguments` is JSON, as text."""

    name: str
    arguments: str


class ToolCall(TypedDict, total=False):
    """A call in OpenAI's form."""

    id: str
    type: Required[Literal["function"]]
    function: Required[Function]


class Message(TypedDict, total=False):
    """One turn. `content` is empty where a call stands alone.

    Attributes:
        tool_calls: what the assistant calls.
        tool_call_id, name: of a tool's answer: the call that it belongs to, and the tool.
        reasoning_content: what the assistant thought before it answered.
        trainable: whether to train on this message; where it is missing, the setting `train_on` decides.
    """

    role: Required[Literal["system", "user", "assistant", "tool"]]
    content: Required[str]
    tool_calls: list[ToolCall]
    tool_call_id: str
    name: str
    reasoning_content: str
    trainable: bool


def has_conversation(record: dict[str, Any]) -> bool:
    """Whether a record holds more than one question and one answer."""
    return "messages" in record


def conversation(record: dict[str, Any], before_input: str = "\n") -> list[Message]:
    """The messages of a record of either form; the last is the answer.

    Args:
        before_input: what stands between the instruction and the input.
    """
    if not has_conversation(record):
        return [
            {"role": "user", "content": question_of(record, before_input)},
            {"role": "assistant", "content": record["output"].strip()},
        ]
    messages = list(record["messages"])
    if record.get("input"):
        last = max(place for place, message in enumerate(messages) if message["role"] == "user")
        messages[last] = {**messages[last], "content": question_of(record, before_input)}
    return messages


def question_of(record: dict[str, Any], before_input: str = "\n") -> str:
    """Instruction and input of a record as one text."""
    more = (record.get("input") or "").strip()
    return record["instruction"].strip() + (f"{before_input}{more}" if more else "")


def conversation_record(messages: list[Message], tools: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """The record of a conversation; a plain question and its answer stay in the one-turn form.

    Args:
        messages: one from the user or more, and the assistant's answer as the last.
        tools: definitions in OpenAI's form, if the assistant may call any.
    """
    asked = next(message["content"] for message in reversed(messages) if message["role"] == "user")
    record: dict[str, Any] = {"instruction": asked, "input": "", "output": answer_of(messages[-1])}
    plain = [message.keys() for message in messages] == [{"role", "content"}] * 2
    if tools or not plain or messages[0]["role"] != "user":
        record["messages"] = messages
    return record | ({"tools": tools} if tools else {})


def answer_of(message: Message) -> str:
    """What an answer says; of one with tool calls, the calls only."""
    calls = message.get("tool_calls")
    return call_text(calls) if calls else message["content"]


def call_text(calls: Sequence[ToolCall]) -> str:
    """Tool calls as JSON, the same for all that have the same names and arguments: one object, or a list of
    several.

    Arguments that are no JSON (a model may write them) stay text.
    """
    found = [
        {"name": call["function"]["name"], "arguments": _sorted(call["function"]["arguments"])}
        for call in calls
    ]
    return json.dumps(found[0] if len(found) == 1 else found, ensure_ascii=False)


def _sorted(arguments: str) -> Any:
    try:
        return json.loads(json.dumps(json.loads(arguments), sort_keys=True))
    except (ValueError, RecursionError):
        return arguments
