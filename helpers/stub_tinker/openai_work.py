"""Requests of OpenAI's API as sampling jobs. Each key has one session for them, which lives while it is used.

A checkpoint is loaded at its first use. The three that a key used last stay in memory.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime

from tinker import types

from helpers.stub_tinker import sample_requests
from helpers.stub_tinker.budgets import Hold
from helpers.stub_tinker.checkpoint_store import RENDERER_NAME, format_of
from helpers.stub_tinker.errors import BadRequest, RequestError
from helpers.stub_tinker.jobs import SampleJob
from helpers.stub_tinker.openai_prompts import Prompt, chat_prompt, text_prompt
from helpers.stub_tinker.openai_requests import ChatRequest, CompletionRequest
from helpers.stub_tinker.sample_requests import SampleFuture
from helpers.stub_tinker.samplers import KEPT_ADAPTERS, adapter_of, of_checkpoint
from helpers.stub_tinker.service import SamplingSession, Service, Session

PLACE_BYTES = 512  # of a token with its logprob in an answer that waits to be sent
TOUCH_SECONDS = 10  # between two signs that a request's session is alive


class NoModel(BadRequest):
    """The server has no model of that name, for this key."""


@dataclass
class Work:
    """One prompt under way. `future` ends in the prompt's scores, or None if it is not to be echoed."""

    prompt: Prompt
    future: SampleFuture

    @property
    def samples(self) -> list[SampleJob]:
        return [job for job in self.future.jobs if isinstance(job, SampleJob)]


class Batch:
    """The prompts of one request, under way.

    Attributes:
        tokenizer: of the model.
        work: one for each prompt, in order.
    """

    def __init__(self, service: Service, owner: str, request: ChatRequest | CompletionRequest):
        self.request, self._service, self._owner = request, service, owner
        self._session = _session(service, owner)
        sampler, renderer = _sampler(service, owner, self._session, request.model)
        model, running = service.load(sampler.base)
        self.tokenizer, self._max_length = running.tokenizer, model.config.max_length
        self.work: list[Work] = []
        self._holds: list[Hold] = []
        service.usage.count(self._session, requests=1)
        try:
            for prompt in self._prompts(renderer):
                self.work.append(self._begin(sampler, prompt))
        except Exception:
            self.cancel()
            raise

    def _prompts(self, renderer: str | None) -> list[Prompt]:
        request, longest = self.request, self._max_length
        if isinstance(request, CompletionRequest):
            return [text_prompt(self.tokenizer, text, longest) for text in request.prompt]
        name = request.renderer or renderer
        made = self._service.renderers.get(name, self.tokenizer) if name else None
        return [chat_prompt(self.tokenizer, request.messages, longest, made)]

    def _begin(self, sampler: SamplingSession, prompt: Prompt) -> Work:
        request = self.request
        longest = request.max_tokens
        if isinstance(request, ChatRequest):
            top, scored = request.top_logprobs, False
            longest = request.max_completion_tokens or longest
        else:
            top, scored = request.logprobs or 0, request.echo
        params = types.SamplingParams.model_construct(
            max_tokens=longest or None,
            seed=request.seed,
            stop=[*request.stops, *prompt.stop, *self._end_of_text()],
            temperature=request.temperature,
            top_k=request.top_k or -1,
            top_p=request.top_p,
        )
        self._hold_places(prompt, longest, top, scored)
        asked = types.SampleRequest.model_construct(
            num_samples=0 if longest == 0 else request.n,
            prompt=types.ModelInput.from_ints(prompt.tokens),
            sampling_params=params,
            prompt_logprobs=scored,
            topk_prompt_logprobs=top if scored else 0,
            topk_sample_logprobs=top,
        )
        adapter = adapter_of(self._service, sampler)
        future = sample_requests.begin(self._service, asked, sampler, adapter, lambda _, scores, __: scores)
        self._service.direct.add(future)
        return Work(prompt, future)

    def _hold_places(self, prompt: Prompt, longest: int | None, top: int, scored: bool) -> None:
        """Take what the logprobs of the answer will need, until it is sent."""
        request, room = self.request, self._max_length - len(prompt.tokens)
        if request.logprobs is None or request.logprobs is False:
            return
        new = room if longest is None else min(longest, room)
        places = request.n * (max(new, 0) + scored * len(prompt.tokens))
        self._holds.append(self._service.budgets.hold(self._owner, queued=places * (1 + top) * PLACE_BYTES))

    def _end_of_text(self) -> list[int]:
        return [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]

    async def changes(self) -> AsyncIterator[bool]:
        """Whether all has ended: once at the beginning, and after each new token."""
        changed, loop = asyncio.Event(), asyncio.get_running_loop()

        def wake(_: object = None) -> None:  # on the engine's thread
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits
                loop.call_soon_threadsafe(changed.set)

        for work in self.work:
            work.future.add_done_callback(wake)
            for job in work.samples if self.request.stream else []:
                job.on_token = wake
        while True:
            ended = all(work.future.done() for work in self.work)
            yield ended
            if ended:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), TOUCH_SECONDS)
            changed.clear()
            with contextlib.suppress(RequestError):  # its session ended: the jobs say so
                self._service.touch(self._session, self._owner)

    def cancel(self) -> None:
        """Stop what is not done: nobody waits for it."""
        for work in self.work:
            if not work.future.done():
                self._service.engine.cancel(work.future.base, work.future.jobs)
        self.close()

    def close(self) -> None:
        self._service.direct.difference_update(work.future for work in self.work)
        for hold in self._holds:
            hold.release()


def _session(service: Service, owner: str) -> str:
    """The session of a key's requests, made if there is none. It is not stored on disk."""
    session_id = f"openai-{owner}"
    with service.opening:
        if session_id not in service.sessions:
            service.check_room("sessions", owner, service.sessions)
            service.sessions[session_id] = Session(owner, "OpenAI clients")
            service.usage.open(session_id)
    service.touch(session_id, owner)
    return session_id


def _sampler(service: Service, owner: str, session: str, name: str) -> tuple[SamplingSession, str | None]:
    """The sampler of a base model or a checkpoint, and the renderer it was trained with, if that is known.

    Raises:
        NoModel: there is no model of that name for this owner.
    """
    checkpoint, info = None, {}
    if name.startswith("tinker://"):
        try:
            _, details, info = service.store.find(name, owner)
        except RequestError as error:
            raise NoModel(str(error), error.status) from error
        checkpoint = details.get("id") or details["time"]  # a name can be given anew
    elif name not in service.engine.bases:
        offered = ", ".join(service.engine.bases)
        raise NoModel(f"there is no model {name[:300]!r}: name a tinker:// path of yours, or {offered}", 404)
    sampler_id = f"{session}:sample:{name}"
    with service.opening:  # one at a time: of many requests for one checkpoint, the first loads it
        sampler = service.samplers.get(sampler_id)
        if sampler is None or sampler.checkpoint != checkpoint:
            service.check_room("samplers", owner, service.samplers)
            sampler = SamplingSession(session, name, owner)
            if checkpoint:
                sampler = of_checkpoint(service, owner, session, name)
            service.samplers[sampler_id] = sampler
        sampler.used = time.monotonic()
        _forget_unused(service, session)
    return sampler, format_of(info).get(RENDERER_NAME)


def _forget_unused(service: Service, session: str) -> None:
    """Drop the samplers that a key has not used for longest; what runs keeps its adapter."""
    own = [(key, s) for key, s in list(service.samplers.items()) if s.session == session and s.model_path]
    for key, sampler in sorted(own, key=lambda item: item[1].used)[: max(len(own) - KEPT_ADAPTERS, 0)]:
        service.samplers.pop(key, None)
        if sampler.file:
            sampler.file.unlink(missing_ok=True)


def models(service: Service, owner: str) -> list[dict]:
    """The base models, and the caller's checkpoints to sample from, newest first."""
    named: list[tuple[str, int, str]] = [(base, 0, "base model") for base in service.engine.bases]
    for checkpoint in service.store.list_checkpoints(owner):
        if checkpoint["checkpoint_type"] == "sampler":
            made = datetime.fromisoformat(checkpoint["time"])
            named.append((checkpoint["tinker_path"], int(made.timestamp()), "you"))
    return [
        {"id": name, "object": "model", "created": created, "owned_by": by} for name, created, by in named
    ]
