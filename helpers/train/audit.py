"""Does a renderer write what the model's own chat template writes? Token by token, with the first difference.

    for finding in audit(get_renderer("qwen3", "Qwen/Qwen3-8B")):
        print(finding)

A renderer whose tokens are not the template's trains the model on a format that it doesn't know, and that
servers such as vLLM don't use.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from helpers.data.conversation import Message, conversation, conversation_record
from helpers.errors import DataError
from helpers.train.messages import renderer_name
from helpers.train.renderers import prompt_tokens
from helpers.train.supervised import UnwrittenError, training_tokens

_ASKED: Message = {"role": "user", "content": "Where is my order 17?"}
_ANSWER: Message = {"role": "assistant", "content": "It left our house on 3 May."}
_LATER: list[Message] = [
    {"role": "user", "content": "When will it come?"},
    {"role": "assistant", "content": "On 5 May."},
]
_SYSTEM: Message = {"role": "system", "content": "You answer for a bookshop, in one sentence."}
_PARAMETERS = {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]}
_TOOL = {"name": "find_order", "description": "Look up an order.", "parameters": _PARAMETERS}
_CALL: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": "call00017",
            "type": "function",
            "function": {"name": "find_order", "arguments": '{"number": 17}'},
        }
    ],
}
_FOUND: Message = {
    "role": "tool",
    "content": "sent: 3 May",
    "tool_call_id": "call00017",
    "name": "find_order",
}
_THOUGHTS = "Order 17 left on 3 May."

CONVERSATIONS: dict[str, dict[str, Any]] = {
    "a question": conversation_record([_ASKED, _ANSWER]),
    "a system message": conversation_record([_SYSTEM, _ASKED, _ANSWER]),
    "several turns": conversation_record([_SYSTEM, _ASKED, _ANSWER, *_LATER]),
    "a tool call": conversation_record([_SYSTEM, _ASKED, _CALL], [{"type": "function", "function": _TOOL}]),
    "a tool's answer": conversation_record(
        [_SYSTEM, _ASKED, _CALL, _FOUND, _ANSWER], [{"type": "function", "function": _TOOL}]
    ),
    "thinking": conversation_record([_ASKED, {**_ANSWER, "reasoning_content": _THOUGHTS}]),
    "thinking in an earlier turn": conversation_record(
        [_ASKED, {**_ANSWER, "reasoning_content": _THOUGHTS}, *_LATER]
    ),
}


@dataclass(frozen=True)
class Finding:
    """How a renderer writes one conversation.

    Attributes:
        name: of the conversation.
        tokens: that were compared.
        difference: the first one, with the text around it; empty if there is none.
        refused: why the renderer or the template can't write it; else empty.
    """

    name: str
    tokens: int = 0
    difference: str = ""
    refused: str = ""

    def __str__(self) -> str:
        if self.refused:
            return f"{self.name}: not written: {self.refused}"
        return f"{self.name}: {self.difference or f'the same {self.tokens} tokens'}"


def audit(renderer: Any, records: dict[str, dict[str, Any]] | None = None) -> list[Finding]:
    """Compare a renderer's tokens with those of the chat template of its tokenizer.

    What the template writes after the last token that is trained on, such as a line break, is not compared.

    Args:
        renderer: from `get_renderer`.
        records: by a name for each; CONVERSATIONS by default.

    Raises:
        DataError: the tokenizer has no chat template.
    """
    if not getattr(renderer.tokenizer, "chat_template", None):
        raise DataError(
            "the model has no chat template to compare with", "give the model that was tuned for chat"
        )
    return [_finding(name, record, renderer) for name, record in (records or CONVERSATIONS).items()]


def _finding(name: str, record: dict[str, Any], renderer: Any) -> Finding:
    try:
        prompt = prompt_tokens(record, renderer)
        tokens, weights = training_tokens(record, renderer)
    except UnwrittenError as error:
        return Finding(name, refused=error.why)
    except DataError as error:
        return Finding(name, refused=error.what)
    end = max(place for place, weight in enumerate(weights) if weight) + 1
    off = {"enable_thinking": False, "thinking": False} if renderer.disables_thinking else {}
    try:
        written = (
            template_tokens(record, renderer, to_answer=False, **off),
            template_tokens(record, renderer, to_answer=True, **off),
        )
    except Exception as error:  # a template is a program: whatever it raises is its refusal
        return Finding(name, refused=f"the chat template says: {error}")
    decode = renderer.tokenizer.decode
    by = renderer_name(renderer) or type(renderer).__name__
    for part, ours, theirs in (("prompt", prompt, written[1]), ("answer", tokens[:end], written[0][:end])):
        if difference := first_difference(ours, theirs, decode, by):
            return Finding(name, difference=f"the {part} differs {difference}")
    return Finding(name, end)


def template_tokens(record: dict[str, Any], renderer: Any, to_answer: bool, **options: Any) -> list[int]:
    """What `apply_chat_template` of a renderer's tokenizer makes of a record.

    Args:
        to_answer: leave the answer out, and begin it.
        options: for the template, or `chat_template` in place of it.
    """
    messages = [_as_transformers_takes_it(message) for message in conversation(record)]
    return list(
        renderer.tokenizer.apply_chat_template(
            messages[:-1] if to_answer else messages,
            tools=record.get("tools"),
            add_generation_prompt=to_answer,
            tokenize=True,
            return_dict=False,
            **options,
        )
    )


def _as_transformers_takes_it(message: Message) -> dict[str, Any]:
    """The message with the arguments of its calls as objects."""
    calls = [
        {**call, "function": {**call["function"], "arguments": json.loads(call["function"]["arguments"])}}
        for call in message.get("tool_calls", [])
    ]
    return {**message, **({"tool_calls": calls} if calls else {})}


def first_difference(
    ours: Sequence[int],
    theirs: Sequence[int],
    decode: Callable[[list[int]], str],
    name: str,
    context: int = 8,
) -> str:
    """Where two lists of tokens part, with the text around it; empty if they are the same.

    Args:
        name: of the renderer that wrote the first.
        context: tokens to show before it, and from it on.
    """
    if list(ours) == list(theirs):
        return ""
    pairs = enumerate(zip(ours, theirs, strict=False))
    place = next((place for place, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
    before, mine, other = (
        decode(list(tokens))
        for tokens in (
            ours[max(0, place - context) : place],
            ours[place : place + context],
            theirs[place : place + context],
        )
    )
    width = max(len(name), len("chat template"))
    lines = [f"    {writer:<{width}}  {text!r}" for writer, text in ((name, mine), ("chat template", other))]
    return "\n".join([f"at token {place + 1}, after {before!r}:", *lines])
