"""The base model's own chat template as a `tinker_cookbook` renderer, whatever the model.

The tokens of a conversation are those of `tokenizer.apply_chat_template`. What is trained on is found by
rendering what comes before each answer, so nothing has to be known of the template.
"""

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import jinja2
import tinker
import torch
from tinker_cookbook.exceptions import RendererError
from tinker_cookbook.renderers.base import (
    Message,
    ParseTermination,
    RenderContext,
    RenderedMessage,
    Renderer,
    Role,
    ToolSpec,
    TrainOnWhat,
    UnparsedToolCall,
    get_text_content,
    parse_content_blocks,
)

TOOLS = (
    "tool_declare"  # the role of the message that holds the tools, as in the cookbook's renderers for Kimi
)


class TemplateRenderer(Renderer):
    """Writes what the chat template of the tokenizer writes.

    Args:
        before: worked examples, to put before each conversation: without system messages of their own, after
            its system message.

    Raises:
        RendererError: the tokenizer has no chat template.
    """

    tokenizer: Any

    def __init__(self, tokenizer: Any, before: Sequence[Message] = ()):
        super().__init__(tokenizer)
        if not getattr(tokenizer, "chat_template", None):
            raise RendererError("the model has no chat template")
        self._before = list(before)

    # What the cookbook asks of a renderer

    def render_message(self, message: Message, ctx: RenderContext) -> RenderedMessage:
        raise RendererError("a chat template writes whole conversations, not single messages")

    def create_conversation_prefix_with_tools(
        self, tools: list[ToolSpec], system_prompt: str = ""
    ) -> list[Message]:
        declared = Message(role=TOOLS, content=json.dumps(tools))
        return [declared, *([Message(role="system", content=system_prompt)] if system_prompt else [])]

    def build_generation_prompt(
        self, messages: list[Message], role: Role = "assistant", prefill: str | None = None
    ) -> tinker.ModelInput:
        if role != "assistant":
            raise RendererError(f"a chat template can't begin a turn of role {role!r}")
        begun = self.tokenizer.encode(prefill, add_special_tokens=False) if prefill else []
        return tinker.ModelInput.from_ints(self._tokens(messages, to_answer=True) + begun)

    def build_supervised_example(
        self,
        messages: list[Message],
        train_on_what: TrainOnWhat = TrainOnWhat.LAST_ASSISTANT_MESSAGE,
    ) -> tuple[tinker.ModelInput, torch.Tensor]:
        """The tokens of `apply_chat_template`, with weight 1 on the answers and on the token that ends each.

        Raises:
            RendererError: the template refuses the conversation, or an answer can't be told from what is
                around it.
        """
        tokens = self._whole(messages)
        weights = torch.full([len(tokens)], float(train_on_what == TrainOnWhat.ALL_TOKENS))
        if train_on_what != TrainOnWhat.ALL_TOKENS:
            for place in self._trained(messages, train_on_what):
                weights[self._answer(messages, place, tokens)] = 1.0
        return tinker.ModelInput.from_ints(tokens), weights

    def get_stop_sequences(self) -> list[int]:
        """The special token after an answer in the template, and the tokenizer's end of text."""
        return sorted(self._ends)

    def parse_response(self, response: list[int]) -> tuple[Message, ParseTermination]:
        """The answer up to its end, with thinking in `<think>` and calls in `<tool_call>` taken apart."""
        end = next((place for place, token in enumerate(response) if token in self._ends), None)
        text = str(self.tokenizer.decode(list(response[:end]), skip_special_tokens=True))
        if self._opens_thinking:
            text = f"<think>{text}"
        message = Message(role="assistant", content=text)
        if found := parse_content_blocks(text):
            message["content"], calls = found
            message["tool_calls"] = [call for call in calls if not isinstance(call, UnparsedToolCall)]
            message["unparsed_tool_calls"] = [call for call in calls if isinstance(call, UnparsedToolCall)]
        return message, ParseTermination.MALFORMED if end is None else ParseTermination.STOP_SEQUENCE

    def to_openai_message(self, message: Message) -> dict[str, Any]:
        """The message as chat templates read it: arguments as an object, thinking beside the content."""
        turn = super().to_openai_message({**message, "content": get_text_content(message)})
        thoughts = [part["thinking"] for part in _parts(message) if part["type"] == "thinking"]
        if thoughts:
            turn["reasoning_content"] = "".join(thoughts)
        for call in turn.get("tool_calls", ()):
            call["function"]["arguments"] = _object(call["function"]["arguments"])
            if call["id"] is None:
                del call["id"]
        return turn

    # How the template writes

    def text(self, messages: Sequence[Message], to_answer: bool = False) -> str:
        """What the template writes.

        Args:
            to_answer: whether the assistant's turn is begun after it.

        Raises:
            RendererError: the template refuses the conversation, or leaves the text of a message out.
        """
        tools, turns = self._conversation(messages)
        written = self._write(turns, tools, to_answer)
        if tools and written == self._write(turns, None, to_answer):
            raise RendererError("the model's chat template leaves out the tools")
        if left_out := next(_missing(written, turns), ""):
            raise RendererError(f"the model's chat template leaves out {left_out}")
        return written

    def _write(self, turns: list[dict[str, Any]], tools: list[Any] | None, to_answer: bool) -> str:
        tokenizer: Any = self.tokenizer
        try:
            return tokenizer.apply_chat_template(
                turns, tools=tools, tokenize=False, add_generation_prompt=to_answer
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise RendererError(f"the model's chat template refuses such turns: {error}") from error

    def _conversation(
        self, messages: Sequence[Message]
    ) -> tuple[list[dict[str, Any]] | None, list[dict[str, Any]]]:
        """The tools and the turns, as `apply_chat_template` takes them."""
        declared = [json.loads(str(message["content"])) for message in messages if message["role"] == TOOLS]
        tools = [{"type": "function", "function": tool} for found in declared for tool in found]
        turns = [message for message in messages if message["role"] != TOOLS]
        own_first = not any(message["role"] == "system" for message in self._before)
        first = int(own_first and bool(turns) and turns[0]["role"] == "system")
        turns = [*turns[:first], *self._before, *turns[first:]]
        return tools or None, [self.to_openai_message(message) for message in turns]

    def _tokens(self, messages: Sequence[Message], to_answer: bool = False) -> list[int]:
        return list(self.tokenizer.encode(self.text(messages, to_answer), add_special_tokens=False))

    def _whole(self, messages: list[Message]) -> list[int]:
        """The tokens of a conversation. Where the tokenizer would split the end of the last prompt otherwise
        because an answer follows, the prompt keeps the tokens that the model is asked with.
        """
        tokens = self._tokens(messages)
        text, before = self.text(messages), self.text(messages[:-1], to_answer=True)
        prompt = self._tokens(messages[:-1], to_answer=True)
        if tokens[: len(prompt)] == prompt or not text.startswith(before):
            return tokens
        parted = prompt + self.tokenizer.encode(text[len(before) :], add_special_tokens=False)
        return parted if self.tokenizer.decode(parted) == self.tokenizer.decode(tokens) else tokens

    @cached_property
    def _special(self) -> dict[int, str]:
        """Tokens that no text of a user should make."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        known = {token: str(added[token]) for token in added if added[token].special}
        tokenizer: Any = self.tokenizer
        return known | {token: tokenizer.decode([token]) for token in tokenizer.all_special_ids}

    @cached_property
    def _ends(self) -> set[int]:
        turns = [Message(role="user", content="question"), Message(role="assistant", content="the-answer")]
        after = self.text(turns).rpartition("the-answer")[2]
        end = self.tokenizer.encode(after, add_special_tokens=False)[:1]
        end_of_text: Any = self.tokenizer.eos_token_id
        return {*(token for token in end if token in self._special), end_of_text} - {None}

    @cached_property
    def _opens_thinking(self) -> bool:
        return self.text([Message(role="user", content="a")], to_answer=True).rstrip().endswith("<think>")

    # What is trained on

    def _trained(self, messages: list[Message], what: TrainOnWhat) -> Iterator[int]:
        """The places of the messages to train on."""
        last_turn = self._last_assistant_turn_start_index(messages)
        for place, message in enumerate(messages):
            context = RenderContext(
                place, place == len(messages) - 1, in_last_assistant_turn=place >= last_turn
            )
            if self._output_is_trained(message, context, what):
                if message["role"] != "assistant":
                    raise RendererError(
                        f"message {place + 1} is of role {message['role']!r}: in a chat template, only the "
                        f"assistant's messages can be trained on, or all tokens (train_on={what.value!r})"
                    )
                yield place

    def _answer(self, messages: list[Message], place: int, tokens: list[int]) -> slice:
        """Where the answer stands in the tokens of the conversation, with the token that ends it."""
        content = get_text_content(messages[place])
        if sign := next((sign for sign in self._special.values() if sign and sign in content), ""):
            raise RendererError(
                f"the answer in message {place + 1} holds {sign!r}, a control token of the model"
            )
        prompt = self._tokens(messages[:place], to_answer=True)
        start = _shared(prompt, tokens)
        end = next((end for end in range(start, len(tokens)) if tokens[end] in self._ends), None)
        if start < len(prompt):
            raise RendererError(
                f"after its prompt, the chat template doesn't begin the answer in message {place + 1} as in "
                f"the whole conversation ({self.tokenizer.decode(tokens[start : start + 12])!r})"
            )
        if end is None:
            raise RendererError(
                "the chat template ends an answer with no special token, so none would ever end"
            )
        return slice(start, end + 1)


def _shared(one: list[int], other: list[int]) -> int:
    """How many tokens two lists begin with in common."""
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )


def _parts(message: Message) -> list[Any]:
    return message["content"] if isinstance(message["content"], list) else []


def _object(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def _missing(written: str, turns: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The messages whose text a template did not write, in words."""
    for number, turn in enumerate(turns, 1):
        text = turn["content"].rpartition("</think>")[2].strip()
        if text not in written and json.dumps(text, ensure_ascii=False)[1:-1] not in written:
            yield f"the text of message {number} (role {turn['role']!r})"
