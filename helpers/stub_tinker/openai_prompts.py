"""From a chat or a text to the prompt's tokens: by the model's chat template, or by a renderer's name.

A renderer is one of `tinker_cookbook`. It is named by the request, or by the training client that made the
checkpoint, in its `user_metadata`, as the cookbook's own recipes do. The prompt then has the very tokens that
the model was trained on.
"""

import importlib
import threading
from dataclasses import dataclass, field
from typing import Any

from helpers.stub_tinker.errors import BadRequest
from helpers.stub_tinker.openai_requests import Message, OptionError

TEXT_FACTOR = 64  # characters a token of the context: a longer text is refused before it is tokenized


@dataclass
class Prompt:
    """Token ids, and what ends an answer beside the model's own end of text and what the request says."""

    tokens: list[int]
    stop: list[str] | list[int] = field(default_factory=list)


class Renderers:
    """The renderers that chats can be asked in.

    Args:
        register: `MODULE:FUNCTION`, called once to add some of one's own to the cookbook's; none if empty.
    """

    def __init__(self, register: str = ""):
        self._register, self._lock = register, threading.Lock()

    def get(self, name: str, tokenizer: Any) -> Any:
        """A renderer of the cookbook.

        Raises:
            BadRequest: there is none of that name, or it doesn't fit the tokenizer.
        """
        from tinker_cookbook import renderers

        with self._lock:
            if self._register:
                module, _, function = self._register.partition(":")
                getattr(importlib.import_module(module), function)()
                self._register = ""
        try:
            return renderers.get_renderer(name, tokenizer)
        except Exception as error:  # assertions and errors of many kinds
            raise OptionError("renderer", f"{name[:80]!r} can't be had for this model: {error}") from error


def text_prompt(tokenizer: Any, text: str | list[int], max_length: int) -> Prompt:
    """Of a completion: token ids stay as they are."""
    if not isinstance(text, str):
        return Prompt(text)
    _check_size(len(text), max_length)
    return Prompt(tokenizer.encode(text))


def chat_prompt(tokenizer: Any, messages: list[Message], max_length: int, renderer: Any = None) -> Prompt:
    """Up to where the assistant's answer starts.

    Args:
        renderer: of the cookbook; the model's chat template is used if None.

    Raises:
        BadRequest: the model has no chat template, or it or the renderer refuses these messages.
    """
    _check_size(sum(len(message.text) for message in messages), max_length)
    roles = {"developer": "system"}  # OpenAI's newer name
    chat = [{"role": roles.get(message.role, message.role), "content": message.text} for message in messages]
    if renderer is None and not tokenizer.chat_template:
        raise BadRequest(
            "this model has no chat template: name a renderer, or make the prompt yourself and send it to "
            "/completions"
        )
    try:
        if renderer is None:
            tokens = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
            return Prompt(list(tokens))
        return Prompt(renderer.build_generation_prompt(chat).to_ints(), renderer.get_stop_sequences())
    except Exception as error:  # a template's own message, or a renderer's assertion
        raise OptionError("messages", f"can't be made into a prompt: {error}") from error


def _check_size(characters: int, max_length: int) -> None:
    if characters > TEXT_FACTOR * max_length:
        raise BadRequest(
            f"the prompt has {characters:,} characters; the model's context is {max_length} tokens"
        )
