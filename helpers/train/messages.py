"""The messages of a record, in the form that the cookbook's renderers take.

messages = with_tools(cookbook_messages(messages_of(record, renderer)), record, renderer)
renderer.build_supervised_example(messages)
"""

from collections.abc import Iterable
from typing import Any

from helpers.data.conversation import Message, conversation
from helpers.train.guide import before_input


def renderer_name(renderer: Any) -> str:
    """The name that a renderer was made by; empty for one made by hand."""
    return getattr(renderer, "_renderer_name", None) or ""


def messages_of(record: dict[str, Any], renderer: Any) -> list[Message]:
    """The conversation of a record, without white space around its texts, as the renderer's format puts a
    question and its input together.
    """
    messages = conversation({"output": ""} | record, before_input(renderer_name(renderer)))
    return [{**message, "content": message["content"].strip()} for message in messages]


def messages_before_answer(record: dict[str, Any], renderer: Any) -> list[Any]:
    """The turns of a record that come before its last answer, without marks for training: what a server is
    asked.
    """
    messages = messages_of(record, renderer)
    before = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    return [{key: value for key, value in message.items() if key != "trainable"} for message in before]


def cookbook_messages(messages: Iterable[Message]) -> list[Any]:
    """Messages with thinking as a part of the content, and calls as the cookbook's `ToolCall`."""
    from tinker_cookbook.renderers import TextPart, ThinkingPart, ToolCall

    found: list[Any] = []
    for message in messages:
        turn: dict[str, Any] = {"role": message["role"], "content": message["content"]}
        if thoughts := message.get("reasoning_content"):
            thinking = ThinkingPart(type="thinking", thinking=thoughts)
            turn["content"] = [thinking, TextPart(type="text", text=turn["content"])]
        if calls := message.get("tool_calls"):
            turn["tool_calls"] = [ToolCall.model_validate(call) for call in calls]
        of_tool = {key: value for key, value in message.items() if key in ("tool_call_id", "name")}
        found.append(turn | of_tool)
    return found


def with_tools(messages: list[Any], record: dict[str, Any], renderer: Any) -> list[Any]:
    """The messages with the tools of the record declared in front, where the renderer puts them.

    Raises:
        NotImplementedError: the renderer can't declare tools.
    """
    if not record.get("tools"):
        return messages
    first = int(messages[0]["role"] == "system")
    tools = [tool["function"] for tool in record["tools"]]
    system = messages[0]["content"] if first else ""
    return [*renderer.create_conversation_prefix_with_tools(tools, system), *messages[first:]]
