"""Sampling with continuous batching: requests join a running batch when a slot is free and leave it when they stop.

One prompt at a time wastes most of each pass over the weights, so everything that waits is decoded together, whatever
client or adapter it comes from.
"""

from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch

from helpers.stub_tinker.lora import Adapter
from helpers.stub_tinker.model import Adapters, Cache, Model, Packed, round_up

SLOTS = 64
POSITIONS = 64 * 1024  # of all slots together: 1.5 GiB of keys and values at 135M parameters, if all were used
PREFILL_TOKENS = 1024


@dataclass
class SampleJob:
    """One sequence to sample. `future` gets a `Sequence`."""

    prompt: list[int]
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int | None
    stop_tokens: frozenset[int]
    stop_strings: list[str]
    adapter: Adapter | None
    topk_logprobs: int = 0
    future: Future = field(default_factory=Future)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    topk: list[tuple[list[int], list[float]]] = field(default_factory=list)
    generator: torch.Generator | None = None


@dataclass
class Sequence:
    """A sampled sequence: tokens, their untempered logprobs, and why it ended (`stop` or `length`)."""

    tokens: list[int]
    logprobs: list[float]
    stop_reason: str
    topk: list[tuple[list[int], list[float]]]


@dataclass
class ScoreJob:
    """Logprobs of a prompt's own tokens. `future` gets (n,) float32, NaN first, and the top k of each position."""

    prompt: list[int]
    adapter: Adapter | None
    topk: int = 0
    future: Future = field(default_factory=Future)


def adapters_for(jobs: list, rows_of: list[int], model: Model, dtype: torch.dtype) -> Adapters:
    """Which rows take which adapter's delta, where job i has `rows_of[i]` rows one after the other."""
    by_adapter: dict[int, list[int]] = {}
    starts = np.concatenate([[0], np.cumsum(rows_of)])
    for i, job in enumerate(jobs):
        by_adapter.setdefault(id(job.adapter), []).append(i)
    segments = []
    for members in by_adapter.values():
        adapter = jobs[members[0]].adapter
        if adapter is None:
            continue
        rows = None
        if len(by_adapter) > 1:
            rows = torch.from_numpy(np.concatenate([np.arange(starts[i], starts[i + 1]) for i in members])).to(model.device)
        groups = adapter.exact if dtype == torch.float32 else adapter.fast
        segments.append((groups, adapter.layout.scale, rows))
    return Adapters(dtype, segments=segments)


class Sampler:
    """The running batch of one base model. All calls come from the engine's thread."""

    def __init__(self, model: Model, tokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.waiting: deque[SampleJob] = deque()
        self.scoring: deque[ScoreJob] = deque()
        self.running: list[SampleJob] = []
        self.cache: Cache | None = None

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running or self.scoring)

    @torch.no_grad()
    def work(self, steps: int) -> None:
        """Score one batch of prompts, admit what fits, and decode up to `steps` tokens for each running sequence."""
        if self.scoring:
            self._guard(self._score, self._take(self.scoring))
        for _ in range(steps):
            while self.waiting and (room := self._slots() - len(self.running)) > 0:
                self._guard(self._prefill, self._take(self.waiting, room))
            if not self.running:
                break
            self._guard(self._decode, list(self.running))
        if not self.busy:
            self.cache = None

    def _capacity(self, joining: list[SampleJob] = ()) -> int:
        """Positions that a slot needs for the longest of the jobs that run or may run next."""
        return round_up(max(len(job.prompt) + job.max_tokens for job in [*self.running, *joining, *islice(self.waiting, SLOTS)]), 64)

    def _slots(self, joining: list[SampleJob] = ()) -> int:
        return max(1, min(SLOTS, POSITIONS // self._capacity(joining)))

    def _guard(self, work, jobs: list) -> None:
        """Run one piece of work; if it fails, its jobs fail with it and the server goes on."""
        try:
            work(jobs)
        except Exception as error:  # handed to the clients that wait
            for job in jobs:
                if job in self.running:
                    self._remove(job)
                if not job.future.done():
                    job.future.set_exception(error)

    def _take(self, queue: deque, most: int = SLOTS) -> list:
        """Jobs from the head of a queue, up to PREFILL_TOKENS prompt tokens; jobs nobody waits for are dropped."""
        jobs, tokens = [], 0
        while queue and len(jobs) < most and (not jobs or tokens + len(queue[0].prompt) <= PREFILL_TOKENS):
            job = queue.popleft()
            if job.future.set_running_or_notify_cancel():
                jobs.append(job)
                tokens += len(job.prompt)
        return jobs

    def _score(self, jobs: list[ScoreJob]) -> None:
        """Prompt logprobs, in float32 whatever the model's precision."""
        if not jobs:
            return
        packed = Packed([job.prompt for job in jobs], self.model.device)
        hidden = self.model.hidden(packed, adapters_for(jobs, packed.lengths, self.model, torch.float32))
        values = self.model.target_logprobs(hidden[:-1], packed.tokens[1 : packed.size])
        for job, start, length in zip(jobs, packed.starts, packed.lengths):
            own = torch.cat([torch.full((1,), torch.nan), values[start : start + length - 1].cpu()])
            top = None
            if job.topk:
                scores = torch.log_softmax(self.model.logits(hidden[start : start + length - 1]), dim=-1).topk(job.topk)
                top = scores.indices.cpu().numpy().astype(np.int32), scores.values.cpu().numpy()
            job.future.set_result((own.numpy(), top))

    def _prefill(self, jobs: list[SampleJob]) -> None:
        """Read prompts into free slots and sample each one's first token."""
        if not jobs:
            return
        self._make_room(jobs)
        first, cache = len(self.running), self.cache
        packed = Packed([job.prompt for job in jobs], self.model.device)

        def keep(layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
            reach = min(packed.longest, cache.capacity)
            cache.keys[layer][first : first + len(jobs), :, :reach] = keys[: len(jobs), :, :reach]
            cache.values[layer][first : first + len(jobs), :, :reach] = values[: len(jobs), :, :reach]

        hidden = self.model.hidden(packed, adapters_for(jobs, packed.lengths, self.model, self.model.dtype), keep)
        cache.lengths[first : first + len(jobs)] = torch.tensor(packed.lengths)
        self.running.extend(jobs)
        last = torch.tensor([end - 1 for end in packed.starts[1:]])
        self._append(jobs, self.model.logits(hidden[last]))

    def _decode(self, jobs: list[SampleJob]) -> None:
        """One token more for each job. Rows are rounded up; filler rows use free slots and their results are dropped."""
        rows = min(round_up(len(jobs), 1 if len(jobs) < 4 else 8), self.cache.slots)
        self.cache.lengths[len(jobs) : rows] = 0
        tokens = torch.tensor([job.tokens[-1] for job in jobs] + [0] * (rows - len(jobs)), device=self.model.device)
        adapters = adapters_for(jobs, [1] * len(jobs), self.model, self.model.dtype)
        self._append(jobs, self.model.decode(tokens, self.cache, adapters)[: len(jobs)])

    def _append(self, jobs: list[SampleJob], logits: torch.Tensor) -> None:
        """Choose the next token of each job from (jobs, vocab) logits; jobs that end leave their slot."""
        greedy = logits.argmax(dim=-1)
        chosen = greedy.clone()
        for i, job in enumerate(jobs):
            if job.temperature > 0:
                chosen[i] = _draw(logits[i], job)
        logprobs = logits.gather(1, chosen[:, None])[:, 0] - torch.logsumexp(logits, dim=-1)
        for i, (job, token, logprob) in enumerate(zip(jobs, chosen.tolist(), logprobs.tolist())):
            job.tokens.append(token)
            job.logprobs.append(logprob)
            if job.topk_logprobs:
                top = torch.log_softmax(logits[i], dim=-1).topk(job.topk_logprobs)
                job.topk.append((top.indices.tolist(), top.values.tolist()))
            if reason := self._stop_reason(job):
                self._remove(job)
                job.future.set_result(Sequence(job.tokens, job.logprobs, reason, job.topk))

    def _stop_reason(self, job: SampleJob) -> str | None:
        if job.tokens[-1] in job.stop_tokens:
            return "stop"
        if job.stop_strings:
            # The tail must cover the longest stop string even if every token is one byte of it.
            tail = self.tokenizer.decode(job.tokens[-max(len(s.encode()) for s in job.stop_strings) - 4 :])
            if any(stop in tail for stop in job.stop_strings):
                return "stop"
        return "length" if len(job.tokens) >= job.max_tokens else None

    def _remove(self, job: SampleJob) -> None:
        """Free a job's slot by moving the last running job into it."""
        slot, last = self.running.index(job), len(self.running) - 1
        if slot != last:
            self.cache.move(last, slot)
            self.running[slot] = self.running[last]
        self.running.pop()

    def _make_room(self, jobs: list[SampleJob]) -> None:
        """A cache with enough slots and positions; a larger one takes over what the running jobs hold."""
        slots, capacity = max(self._slots(jobs), len(self.running) + len(jobs)), self._capacity(jobs)
        old, n = self.cache, len(self.running)
        if old and old.slots >= slots and old.capacity >= capacity:
            return
        self.cache = Cache(self.model, slots, capacity)  # zeros cost no memory until they are written
        if n:
            used = int(old.lengths[:n].max())
            for new, held in ((self.cache.keys, old.keys), (self.cache.values, old.values)):
                for target, source in zip(new, held):
                    target[:n, :, :used] = source[:n, :, :used]
            self.cache.lengths[:n] = old.lengths[:n]


def _draw(logits: torch.Tensor, job: SampleJob) -> int:
    """One token from (vocab,) logits by temperature, top-k and top-p, with the job's own random numbers."""
    if job.generator is None:
        job.generator = torch.Generator().manual_seed(job.seed) if job.seed is not None else torch.Generator()
        if job.seed is None:
            job.generator.seed()
    scaled = (logits / job.temperature).cpu()
    if 0 < job.top_k < len(scaled):
        scaled[scaled < scaled.topk(job.top_k).values[-1]] = -torch.inf
    probabilities = torch.softmax(scaled, dim=-1)
    if job.top_p < 1:
        ordered, indices = probabilities.sort(descending=True)
        outside = ordered.cumsum(0) - ordered >= job.top_p  # the token that crosses top_p stays in
        probabilities[indices[outside]] = 0
    return int(torch.multinomial(probabilities, 1, generator=job.generator))
