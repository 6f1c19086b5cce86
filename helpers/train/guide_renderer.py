"""The guide's prompt format as a `tinker_cookbook` renderer, so that Inspect and the cookbook's own loops can
use it.

    register()                                        # once; then "guide" names it everywhere in the cookbook
    renderer = renderers.get_renderer("guide", tokenizer)

A question becomes `Instruction: …\\nResponse:`, an answer ends at an empty line: token for token what
`get_format("guide", tokenizer)` makes. Turns before the last question stand before it in the same form.
"""

import tinker
from tinker_cookbook import renderers
from tinker_cookbook.renderers.base import (
    Message,
    ParseTermination,
    RenderContext,
    RenderedMessage,
    Renderer,
    ensure_text,
)

from helpers.train.prompts import GUIDE_STOP, GUIDE_TURNS


class GuideRenderer(Renderer):
    """Renders `system`, `user` and `assistant` messages; it has no tools and no thinking."""

    @property
    def has_extension_property(self) -> bool:
        return True

    def render_message(self, message: Message, ctx: RenderContext) -> RenderedMessage:
        text = ensure_text(message["content"]).strip()
        turn = GUIDE_TURNS.get(message["role"], GUIDE_TURNS["user"])
        empty = not text and message["role"] in (
            "system",
            "assistant",
        )  # the assistant's turn that is to be written
        return RenderedMessage(output=self._chunks("" if empty else turn.format(text)))

    def _chunks(self, text: str) -> list[tinker.ModelInputChunk]:
        tokens = self.tokenizer.encode(text, add_special_tokens=False) if text else []
        return [tinker.types.EncodedTextChunk(tokens=tokens)] if tokens else []

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


def register() -> None:
    """Make `guide` a name that `tinker_cookbook.renderers.get_renderer` knows."""
    renderers.register_renderer("guide", lambda tokenizer, image_processor: GuideRenderer(tokenizer))
