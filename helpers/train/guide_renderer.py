"""The guide's prompt format as a `tinker_cookbook` renderer.

A question becomes `Instruction: …\\nResponse:`, an answer ends at an empty line. Turns before the last
question stand before it in the same form.
"""

from typing import Any

import tinker
from tinker_cookbook.renderers.base import (
    Message,
    ParseTermination,
    RenderContext,
    RenderedMessage,
    Renderer,
    TrainOnWhat,
    ensure_text,
)

from helpers.train.guide import GUIDE_STOP, guide_answer, guide_turn


class GuideRenderer(Renderer):
    """Renders `system`, `user` and `assistant` messages; it has no tools and no thinking."""

    @property
    def has_extension_property(self) -> bool:
        return True

    def render_message(self, message: Message, ctx: RenderContext) -> RenderedMessage:
        plain = _plain(message)
        empty = not plain["content"] and message["role"] in ("system", "assistant")  # the turn to be written
        tokens = [] if empty else self._tokens(guide_turn(plain), message["role"] == "system")
        return RenderedMessage(output=[tinker.types.EncodedTextChunk(tokens=tokens)] if tokens else [])

    def build_supervised_example(
        self,
        messages: list[Message],
        train_on_what: TrainOnWhat = TrainOnWhat.LAST_ASSISTANT_MESSAGE,
    ) -> tuple[tinker.ModelInput, Any]:
        question = ""
        for message in map(_plain, messages):
            if message["role"] == "assistant":
                guide_answer(message, question)
            question = str(message["content"])
        return super().build_supervised_example(messages, train_on_what)

    def _tokens(self, text: str, in_context: bool) -> list[int]:
        """The tokens of a turn: by itself, since an answer must end as it does when it is the last; or as in
        the text of the whole conversation, which is what a chat template makes.
        """
        after = "Instruction:" if in_context else ""
        whole, end = (self.tokenizer.encode(part, add_special_tokens=False) for part in (text + after, after))
        apart = not end or whole[-len(end) :] != end
        return self.tokenizer.encode(text, add_special_tokens=False) if apart else whole[: -len(end)]

    def get_stop_sequences(self) -> list[str]:
        return list(GUIDE_STOP)

    def parse_response(self, response: list[int]) -> tuple[Message, ParseTermination]:
        """The answer up to the first stop text, stripped, and how it ended."""
        text = str(self.tokenizer.decode(response, skip_special_tokens=True))
        ends = [text.index(stop) for stop in GUIDE_STOP if stop in text]
        message = Message(role="assistant", content=text[: min(ends, default=len(text))].strip())
        if ends:
            return message, ParseTermination.STOP_SEQUENCE
        ended = bool(response) and response[-1] == self.tokenizer.eos_token_id
        return message, ParseTermination.EOS if ended else ParseTermination.MALFORMED

    @property
    def _bos_tokens(self) -> list[int]:
        return self.tokenizer.encode("", add_special_tokens=True)


def _plain(message: Message) -> Message:
    """The message with its text as a string, if text is all that its parts are."""
    content = message["content"]
    if isinstance(content, list) and any(part["type"] == "thinking" for part in content):
        return message
    return {**message, "content": ensure_text(content).strip()}
