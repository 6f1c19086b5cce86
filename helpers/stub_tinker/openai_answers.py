"""Answers of OpenAI's API: text as it settles, logprobs, and the exact count of tokens.

Logprobs are the model's own, before temperature, top-k and top-p, as everywhere in Tinker.
"""

import math
import time
import uuid
from collections.abc import Sequence

import numpy as np

from helpers.stub_tinker.jobs import PromptScores, SampleJob
from helpers.stub_tinker.openai_requests import ChatRequest, CompletionRequest
from helpers.stub_tinker.openai_work import Batch, Work

Pairs = list[tuple[int, float]]  # likeliest tokens with their logprobs
Place = tuple[int, float | None, Pairs]  # a token with its logprob, and the likeliest there
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what the first bytes of a longer character decode to


class Choice:
    """One sample of an answer, and how much of it was told."""

    def __init__(self, batch: Batch, work: Work, job: SampleJob | None, index: int):
        self._batch, self._work, self._job, self.index = batch, work, job, index
        self._told, self._told_tokens = 0, 0  # characters, tokens
        self._before = 0  # characters of the prompt that stand before the sample's
        self.prompt_tokens = work.prompt.tokens

    def part(self, ended: bool) -> tuple[str, dict | None, list[int]]:
        """What is new since the last call: text, logprobs if the request asks for them, tokens.

        Args:
            ended: no more tokens come. Until then, text waits that may become a stop text or is half a
                character, and with it its tokens.
        """
        tokens = self._job.tokens[: len(self._job.logprobs)] if self._job else []
        if len(tokens) == self._told_tokens and not ended:
            return "", None, []
        text = self._settled(tokens, ended)
        if len(text) <= self._told and not ended:
            return "", None, []
        new, start = text[self._told :], self._told_tokens
        logprobs = self._logprobs(start, len(tokens)) if self._wants_logprobs() else None
        self._told, self._told_tokens = len(text), len(tokens)
        return new, logprobs, tokens[start:]

    def _settled(self, tokens: list[int], ended: bool) -> str:
        """The text that stays as it is: up to a stop text, which is not part of an answer."""
        job = self._job
        if job is None:
            return ""
        shown = tokens[:-1] if tokens and tokens[-1] in job.stop_tokens else tokens
        text = self._batch.tokenizer.decode(shown, skip_special_tokens=True)
        if found := [text.index(stop) for stop in job.stop_strings if stop in text]:
            return text[: min(found)]
        if ended:
            return text
        text = text.rstrip(INCOMPLETE)
        return text[: len(text) - max((_overlap(text, stop) for stop in job.stop_strings), default=0)]

    def finish_reason(self) -> str:
        """`stop` or `length`, once it has ended."""
        return self._job.future.result().stop_reason if self._job else "length"

    # Logprobs

    def _wants_logprobs(self) -> bool:
        request = self._batch.request
        return request.logprobs if isinstance(request, ChatRequest) else request.logprobs is not None

    def _logprobs(self, start: int, end: int) -> dict:
        """Of the sampled tokens from `start` to before `end`."""
        job, request = self._job, self._batch.request
        places = [] if job is None else [self._place(job, i) for i in range(start, end)]
        if isinstance(request, ChatRequest):
            return {"content": [self._chat_place(*place) for place in places], "refusal": None}
        return self._completion_logprobs(places)

    def _place(self, job: SampleJob, i: int) -> tuple[int, float, Pairs]:
        top = _pairs(*job.topk[i]) if job.topk_logprobs else []
        return job.tokens[i], job.logprobs[i], top

    def _chat_place(self, token: int, logprob: float, top: Pairs) -> dict:
        return self._described(token, logprob) | {"top_logprobs": [self._described(*pair) for pair in top]}

    def _described(self, token: int, logprob: float) -> dict:
        text = self._batch.tokenizer.decode([token])
        known = None if INCOMPLETE in text else list(text.encode())  # the bytes of a part are not in its text
        return {"token": text, "logprob": logprob, "bytes": known}

    def _completion_logprobs(self, places: Sequence[Place]) -> dict:
        texts = [self._batch.tokenizer.decode([token]) for token, _, _ in places]
        tops = [self._by_text(top) if logprob is not None else None for _, logprob, top in places]
        offsets = np.cumsum([self._before + self._told, *map(len, texts)])[:-1].tolist()
        return {
            "tokens": texts,
            "token_logprobs": [logprob for _, logprob, _ in places],
            "top_logprobs": tops if self._batch.request.logprobs else None,
            "text_offset": offsets,
        }

    def _by_text(self, top: Pairs) -> dict[str, float]:
        """The likeliest tokens; of several with the same text, the likeliest."""
        found: dict[str, float] = {}
        for token, logprob in top:
            found.setdefault(self._batch.tokenizer.decode([token]), logprob)
        return found

    def echo(self) -> tuple[str, dict | None]:
        """The prompt's text, to stand before the sample's, and its logprobs if they are asked for."""
        tokens, scores = self.prompt_tokens, self._work.future.result()
        text, logprobs = self._batch.tokenizer.decode(tokens), None
        if self._wants_logprobs():
            owns = [None if math.isnan(own) else own for own in scores.own.tolist()]  # the first has none
            tops = [_top_of_prompt(scores, place) for place in range(len(tokens))]
            logprobs = self._completion_logprobs([*zip(tokens, owns, tops, strict=True)])
        self._before = len(text)
        return text, logprobs


def _top_of_prompt(scores: PromptScores, place: int) -> Pairs:
    if scores.topk is None:
        return []
    ids, values = scores.topk
    return _pairs(ids[place], values[place])


def _pairs(ids: np.ndarray, values: np.ndarray) -> Pairs:
    return list(zip(ids.tolist(), values.tolist(), strict=True))


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text are the beginning of a stop text."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


class Answer:
    """The answer to one request, whole or in parts."""

    def __init__(self, batch: Batch):
        self._batch, self._request = batch, batch.request
        self._chat = isinstance(batch.request, ChatRequest)
        kind, self._object = ("chatcmpl", "chat.completion") if self._chat else ("cmpl", "text_completion")
        self._id, self._created = f"{kind}-{uuid.uuid4().hex}", int(time.time())
        pairs = [(work, job) for work in batch.work for job in work.samples or [None] * batch.request.n]
        self._choices = [Choice(batch, *pair, index) for index, pair in enumerate(pairs)]

    def whole(self) -> dict:
        """The answer, once all has ended.

        Raises:
            Exception: what a sample failed with.
        """
        entries = [self._entry(choice, True, "message") for choice in self._choices]
        return self._frame(self._object, entries) | {"usage": self._usage()}

    def opening(self) -> list[dict]:
        """The first parts of a streamed chat: who speaks."""
        speaks = {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        return [self._part({"index": choice.index, **speaks}) for choice in self._choices if self._chat]

    def parts(self, ended: bool) -> list[dict]:
        """What is new since the last call, in parts for a stream.

        Args:
            ended: all has ended, and this is the last call.

        Raises:
            Exception: what a sample failed with.
        """
        entries = [self._entry(choice, ended, "delta") for choice in self._choices]
        return [self._part(entry) for entry in entries if entry]

    def closing(self) -> list[dict]:
        """The last part of a stream that is to tell its tokens."""
        if not self._request.stream_options.include_usage:
            return []
        return [self._part() | {"usage": self._usage()}]

    def _part(self, *entries: dict) -> dict:
        with_usage = {"usage": None} if self._request.stream_options.include_usage else {}
        return (
            self._frame(f"{self._object}.chunk" if self._chat else self._object, list(entries)) | with_usage
        )

    def _frame(self, kind: str, entries: list[dict]) -> dict:
        head = {"id": self._id, "object": kind, "created": self._created, "model": self._request.model}
        return {**head, "choices": entries}

    def _usage(self) -> dict:
        """Tokens of the prompts, each once, and of all samples, with those that ended them."""
        prompt = sum(len(work.prompt.tokens) for work in self._batch.work)
        sampled = sum(len(job.tokens) for work in self._batch.work for job in work.samples)
        return {"prompt_tokens": prompt, "completion_tokens": sampled, "total_tokens": prompt + sampled}

    def _entry(self, choice: Choice, ended: bool, speech: str) -> dict:
        """What is new of one choice; empty if nothing is.

        Args:
            speech: the field that holds a chat's text.
        """
        echoes = isinstance(self._request, CompletionRequest) and self._request.echo
        echo, echoed = choice.echo() if echoes else ("", None)
        text, logprobs, tokens = choice.part(ended)
        if not (text or ended):
            return {}
        if echoed and logprobs:
            logprobs = {key: echoed[key] and echoed[key] + logprobs[key] for key in echoed}
        said = {speech: {"role": "assistant", "content": text}} if self._chat else {"text": echo + text}
        ids = {"token_ids": tokens, "prompt_token_ids": choice.prompt_tokens}
        return {
            "index": choice.index,
            **said,
            "logprobs": logprobs,
            "finish_reason": choice.finish_reason() if ended else None,
            **(ids if self._request.return_token_ids else {}),
        }
