"""Requests of OpenAI's API: their options, every one checked. What is not offered is refused by its name."""

from typing import Annotated, Any, Literal, TypeVar

import pydantic

from helpers.limits import MAX_SAMPLES
from helpers.stub_tinker.bodies import json_object
from helpers.stub_tinker.errors import BadRequest

MAX_TOP = 20  # likeliest tokens at each place
MAX_CHOICES = 4096  # of one answer: prompts times samples

# Values that mean the same as leaving an option out; clients send some of them always.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "store": (False,),
    "suffix": ("",),
    "tools": ([],),
}


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid")


class StreamOptions(Strict):
    include_usage: bool = False


class TextPart(Strict):
    type: Literal["text"]
    text: str


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(p.text for p in self.content)


class Options(Strict):
    """What both kinds of request take."""

    model: str
    max_tokens: int | None = pydantic.Field(None, ge=0)
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    seed: int | None = None
    stop: str | list[str] = []
    n: int = pydantic.Field(1, ge=1, le=MAX_SAMPLES)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    user: str = ""
    return_token_ids: bool = False

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop


class ChatRequest(Options):
    messages: list[Message] = pydantic.Field(min_length=1)
    max_completion_tokens: int | None = pydantic.Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = pydantic.Field(0, ge=0, le=MAX_TOP)
    renderer: str | None = None


def _prompts(value: Any) -> list[str | list[int]]:
    """A prompt in any of its four forms, as a list of texts and lists of tokens."""
    values: list[Any] = value if isinstance(value, list) else [value]
    if values and all(type(item) is int for item in values):
        values = [values]
    for item in values:
        is_tokens = isinstance(item, list) and item and all(type(token) is int for token in item)
        if not (is_tokens or isinstance(item, str)):
            raise ValueError("must be a text, a list of token ids, or a list of either")
    if not values:
        raise ValueError("is empty")
    return values


class CompletionRequest(Options):
    prompt: Annotated[list[str | list[int]], pydantic.BeforeValidator(_prompts)]
    max_tokens: int | None = pydantic.Field(16, ge=0)
    logprobs: int | None = pydantic.Field(None, ge=0, le=MAX_TOP)
    echo: bool = False


class OptionError(BadRequest):
    """An option is not offered, or has a wrong value."""

    def __init__(self, option: str, message: str):
        super().__init__(f"{option} {message}")
        self.option = option


Request = TypeVar("Request", bound=Options)


def parsed(raw: bytes, model: type[Request]) -> Request:
    """A request, checked but for its prompt's length. A null counts as left out.

    Raises:
        BadRequest: it is not JSON, holds an option that is not offered, or a wrong value.
    """
    body = _without_nulls(json_object(raw))
    for name in set(body) - set(model.model_fields):
        if name not in NEUTRAL or body[name] not in NEUTRAL[name]:
            raise OptionError(name[:80], "is not offered by the stub Tinker backend: leave it out")
        del body[name]
    try:
        request = model.model_validate(body)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise OptionError(where, f"is wrong: {first['msg']}") from error
    _check_together(request)
    return request


def _without_nulls(body: dict) -> dict:
    body = {name: value for name, value in body.items() if value is not None}
    if isinstance(messages := body.get("messages"), list):
        body["messages"] = [
            {k: v for k, v in m.items() if v is not None} if isinstance(m, dict) else m for m in messages
        ]
    return body


def _check_together(request: Options) -> None:
    """Options that need one another, or exclude one another."""
    if "stream_options" in request.model_fields_set and not request.stream:
        raise OptionError("stream_options", "needs stream")
    if isinstance(request, ChatRequest):
        if request.top_logprobs and not request.logprobs:
            raise OptionError("top_logprobs", "needs logprobs")
        if request.max_tokens is not None and request.max_completion_tokens is not None:
            raise OptionError("max_tokens", "and max_completion_tokens are the same: give one")
    prompts = len(request.prompt) if isinstance(request, CompletionRequest) else 1
    if prompts * request.n > MAX_CHOICES:
        raise OptionError("n", f"times {prompts:,} prompts is over {MAX_CHOICES:,}: send fewer at once")
    echo = isinstance(request, CompletionRequest) and request.echo
    if request.max_tokens == 0 and not echo:
        raise OptionError("max_tokens", "can be 0 with echo only")
    if echo and request.stream:
        raise OptionError("echo", "can't be streamed")
