"""Sampling with continuous batching: requests join a running batch when a slot is free and leave it when they
stop.

One prompt at a time wastes most of each pass over the weights, so everything that waits is decoded together,
whatever client or adapter it comes from. What a sequence gets does not depend on what else is in the batch.
Its random numbers are its own, and from its tokens to its logprobs no operation's result for it depends on
the others:

- Products with matrices, frozen or LoRA's, take only numbers of rows that agree to the last bit: `steady.py`.
- A prompt's attention is what it is for it alone, a piece at a time, so that it doesn't matter either which
  pieces are known from earlier prompts: `prefixes.py`. Short prompts' attention is computed together, in
  group sizes whose bits agree with one alone. A new token's is computed on a shelf whose capacity depends
  on the sequence's own length, in numbers of sequences that agree to the last bit: `cache.py`.
- Sums and softmax are over the last dimension, which PyTorch computes row by row once there are several;
  their lengths are the model's, or the sequence's own.
- silu and the rotation are cut between rows: `steady.by_rows`. All else that is element-wise is exactly
  rounded, as IEEE 754 asks: the same in vectors as alone.
- Of equally likely tokens, the lower id comes first.
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from helpers.stub_tinker.cache import Cache, Shelf
from helpers.stub_tinker.jobs import PromptScores, SampleJob, ScoreJob, Sequence
from helpers.stub_tinker.kernels import PIECE, log_softmax
from helpers.stub_tinker.model import Adapters, Model
from helpers.stub_tinker.packing import Packed
from helpers.stub_tinker.places import Places
from helpers.stub_tinker.prefixes import Prefixes, Reading

READ, SCORE, DECODE = KINDS = ("read", "score", "decode")
PREFILL_TOKENS = 1024  # of prompts that are read in one go
READ_TOKENS = 8192  # of prompts that are read before the next token is decoded
READ_SECONDS = 0.25  # for which a longer prompt is read in one turn
DONE = object()
COLDEST = 1e-6  # a lower temperature would overflow, and draws the most likely token all the same
NUCLEUS = (
    1024  # most likely tokens among which top-p is looked for first: sorting a whole vocabulary takes 4 ms
)


@dataclass
class LongPass:
    """The reading of a prompt that takes so long that others have turns between layers."""

    owner: str
    jobs: list[SampleJob | ScoreJob]
    steps: Generator[None, None, None]


def _finish(steps: Generator[None, None, None]) -> None:
    for _ in steps:
        pass


def _without(queues: dict[str, deque], unwanted: Callable[[Any], bool]) -> dict[str, deque]:
    left = {owner: deque(job for job in queue if not unwanted(job)) for owner, queue in queues.items()}
    return {owner: queue for owner, queue in left.items() if queue}


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
            rows = torch.from_numpy(
                np.concatenate([np.arange(starts[i], starts[i + 1]) for i in members])
            ).to(model.device)
        segments.append((adapter.groups(dtype), adapter.layout.scale, rows))
    return Adapters(dtype, segments=segments)


class Sampler:
    """The running batch of one base model. All calls come from the engine's thread, but for `jobs`."""

    def __init__(self, model: Model, tokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.waiting: dict[str, deque[SampleJob]] = {}  # by owner; never empty
        self.scoring: dict[str, deque[ScoreJob]] = {}  # by owner; never empty
        self.cache = Cache(model)
        self.places = Places(self.cache, self._reading)
        self.prefixes = Prefixes(model)
        self._long: LongPass | None = None  # one at a time
        self._adapters: tuple[list[SampleJob], Adapters] | None = (
            None  # of the running batch, until it changes
        )

    @property
    def running(self) -> list[SampleJob]:
        """What is being decoded, in the order of its rows."""
        return self.cache.jobs

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running or self.cache.parked or self.scoring or self._long)

    def jobs(self) -> list[SampleJob | ScoreJob]:
        """All that waits or runs."""
        queues = [*list(self.waiting.values()), *list(self.scoring.values())]
        reading = list(self._long.jobs) if self._long else []
        return [
            *self.running,
            *list(self.cache.parked),
            *reading,
            *(job for queue in queues for job in list(queue)),
        ]

    def _reading(self) -> list[SampleJob]:
        """Samples whose long prompt is being read."""
        return [job for job in (self._long.jobs if self._long else []) if isinstance(job, SampleJob)]

    def add(self, job: SampleJob | ScoreJob) -> None:
        queues: dict = self.scoring if isinstance(job, ScoreJob) else self.waiting
        queues.setdefault(job.owner, deque()).append(job)

    @torch.inference_mode()  # the cache was made in it
    def drop(self, unwanted: Callable[[SampleJob | ScoreJob], bool], error: Exception | None = None) -> None:
        """Forget jobs that wait or run, and end those that have not ended with `error`."""
        kept = {*self.running, *self.cache.parked}
        for job in filter(unwanted, self.jobs()):
            if job in kept:
                self.cache.remove(job)
            if not job.future.done():
                job.future.set_exception(error)
        self.waiting, self.scoring = _without(self.waiting, unwanted), _without(self.scoring, unwanted)
        if self._long and all(job.future.done() for job in self._long.jobs):
            self._long = None

    def turns(self) -> list[tuple[str, str]]:
        """Owners something can be done for, each with what it is: one of `KINDS`."""
        turns = [(self._long.owner, READ)] if self._long else []
        turns += [(owner, SCORE) for owner, queue in self.scoring.items() if self._can_begin(queue[0])]
        decoding = {job.owner for job in [*self.running, *self.cache.parked]}
        joining = {owner for owner, queue in self.waiting.items() if self._can_begin(queue[0])}
        return turns + [(owner, DECODE) for owner in sorted(decoding | joining)]

    def _can_begin(self, job: SampleJob | ScoreJob) -> bool:
        """Whether its prompt can be read now: one long one at a time."""
        if self._long is None:
            return True
        unread = job.prompt if isinstance(job, ScoreJob) else self.prefixes.look_up(job)
        return len(unread) <= PREFILL_TOKENS

    @torch.inference_mode()
    def work(
        self,
        steps: int,
        until: Callable[[], bool] = lambda: False,
        turn: tuple[str, str] | None = None,
    ) -> dict[str, float]:
        """Do one piece of work: score a batch of prompts, or read a part of a long one, or admit what fits
        and decode tokens for each running sequence: up to `steps`, or one at least and then as long as
        `until` is not so.

        Args:
            turn: one of `turns()`; the first one if None.

        Returns:
            Seconds of it by owner.
        """
        self._spent: defaultdict[str, float] = defaultdict(float)
        owner, kind = turn or self.turns()[0]
        if kind == READ:
            self._read_on(owner)
        elif kind == SCORE:
            jobs = self._next_to_score(owner)
            if len(jobs[0].prompt) > PREFILL_TOKENS:
                self._long = LongPass(owner, [*jobs], self._score(jobs))
                self._read_on(owner)
            else:
                self._guard(lambda: _finish(self._score(jobs)), jobs, [owner])
        else:
            self._decode_some(owner, steps, until)
        return self._spent

    def _decode_some(self, owner: str, steps: int, until: Callable[[], bool]) -> None:
        read = 0
        for _ in range(steps):
            self.places.arrange(self.waiting)
            while read < READ_TOKENS and (joining := self._next_to_join()):
                read += sum(map(len, joining))
                joined = [job for reading in joining for job in reading.jobs]
                owners = [job.owner for job in joined]
                if len(joining[0]) > PREFILL_TOKENS:
                    self._long = LongPass(owners[0], joined, self._prefill_alone(joining[0]))
                    break
                self._guard(lambda readings=joining: self._prefill(readings), joined, owners)
            self.cache.settle(self.places.may_grow)
            if not self.running:
                break
            jobs = self.running
            self._guard(
                lambda jobs=jobs: self._decode(jobs), jobs, sorted({owner, *(job.owner for job in jobs)})
            )
            if until():
                break
        self.cache.settle(self.places.may_grow)  # or the room of what ended stays while others train
        if not self.running:
            self._adapters = None  # or an adapter that nobody has any more stays in memory

    def _read_on(self, owner: str) -> None:
        """Go on with the long prompt for a moment, a layer at least."""
        long, deadline = self._long, time.perf_counter() + READ_SECONDS
        assert long is not None
        while self._long is long:
            self._guard(self._one_layer, long.jobs, [owner])
            if all(job.future.done() for job in long.jobs):  # it has failed
                self._long = None
            if time.perf_counter() > deadline:
                break

    def _one_layer(self) -> None:
        assert self._long is not None
        if next(self._long.steps, DONE) is DONE:
            self._long = None

    def _guard(self, work: Callable[[], None], jobs: list, owners: list[str]) -> None:
        """Run one piece of work, in the time of these owners; if it fails, its jobs fail with it and the
        server goes on.
        """
        jobs, started = list(jobs), time.perf_counter()
        try:
            work()
        except Exception as error:  # handed to the clients that wait
            for job in jobs:
                if job in self.running:
                    self.cache.remove(job)
                if not job.future.done():
                    job.future.set_exception(error)
        seconds = time.perf_counter() - started
        for owner in owners:
            self._spent[owner] += seconds / len(owners)

    def _next_to_score(self, owner: str) -> list[ScoreJob]:
        """Prompts of at most PREFILL_TOKENS together, or one longer prompt."""
        queue, tokens = self.scoring[owner], 0
        jobs: list[ScoreJob] = []
        while queue and (not jobs or tokens + len(queue[0].prompt) <= PREFILL_TOKENS):
            jobs.append(queue.popleft())
            tokens += len(jobs[-1].prompt)
        if not queue:
            del self.scoring[owner]
        return jobs

    def _next_to_join(self) -> list[Reading]:
        """Prompts of jobs that can start now, from the owner with the fewest running first: at most
        PREFILL_TOKENS to read, or one prompt with more.
        """
        jobs: list[SampleJob] = []
        readings: list[Reading] = []
        while (owner := self.places.next_owner(self.waiting, jobs, self._can_begin)) is not None:
            job = self.waiting[owner][0]
            reading = self.prefixes.look_up(job)
            if not reading.join(readings, PREFILL_TOKENS):
                break
            self.waiting[owner].popleft()
            if not self.waiting[owner]:
                del self.waiting[owner]
            jobs.append(job)
        return readings

    def _score(self, jobs: list[ScoreJob]) -> Generator[None, None, None]:
        """Prompt logprobs, in float32 whatever the model's precision; with pauses."""
        packed = Packed([job.prompt for job in jobs], self.model.device)
        adapters = adapters_for(jobs, packed.lengths, self.model, torch.float32)
        hidden = yield from self.model.hidden_in_layers(packed, adapters)
        own = (
            self.model.target_logprobs(hidden[:-1], packed.tokens[1 : packed.size, None], adapters)[:, 0]
            .cpu()
            .numpy()
        )
        for job, start, length in zip(jobs, packed.starts, packed.lengths, strict=False):
            scores = PromptScores(np.full(length, np.nan, np.float32))
            first = length - job.last  # of the scored tokens; position 0 has no context
            scores.own[first:] = own[start + first - 1 : start + length - 1]
            if job.topk or job.targets is not None or job.draws:
                yield from self._more_scores(job, scores, hidden[start : start + length - 1])
            if not job.future.done():  # cancelled
                job.future.set_result(scores)

    def _more_scores(
        self, job: ScoreJob, scores: PromptScores, hidden: torch.Tensor
    ) -> Generator[None, None, None]:
        """Top-k, targets and draws of one prompt from its hidden states (n - 1, hidden), 64 positions at a
        time, with a pause after each.
        """
        n, generator = len(hidden), torch.Generator()
        generator.seed() if job.seed is None else generator.manual_seed(job.seed)
        ids, best = np.zeros((n + 1, job.topk), np.int32), np.full((n + 1, job.topk), -99999.0, np.float32)
        drawn, drawn_logprobs = np.zeros((n, job.draws), np.int64), np.zeros((n, job.draws), np.float32)
        wanted = np.zeros((n, 0), np.int64) if job.targets is None else job.targets
        found = np.zeros(wanted.shape, np.float32)
        for start in range(0, n, 64):
            rows, after = slice(start, start + 64), slice(start + 1, start + 65)
            part = hidden[rows]
            adapters = adapters_for([job], [len(part)], self.model, part.dtype)
            logprobs = torch.log_softmax(self.model.logits(part, adapters), dim=-1).cpu()
            if job.topk:
                top = logprobs.topk(job.topk)
                ids[after], best[after] = top.indices.numpy(), top.values.numpy()
            targets = torch.from_numpy(wanted[rows])
            at_targets = logprobs.gather(1, targets.clamp(min=0))
            found[rows] = torch.where(targets < 0, 0.0, at_targets).numpy()
            if job.draws:
                probabilities = torch.softmax(logprobs / max(job.temperature, COLDEST), dim=-1)
                tokens = torch.multinomial(probabilities, job.draws, replacement=True, generator=generator)
                drawn[rows], drawn_logprobs[rows] = tokens.numpy(), logprobs.gather(1, tokens).numpy()
            yield
        skipped = n + 1 - job.last  # what `last` leaves out
        ids[:skipped], best[:skipped] = 0, -99999.0
        scores.topk = (ids, best) if job.topk else None
        scores.targets = None if job.targets is None else found
        scores.draws = (drawn, drawn_logprobs) if job.draws else None

    def _prefill(self, readings: list[Reading]) -> None:
        """Read prompts, and sample the first token of each job that has them."""
        places = self.cache.add_all([(reading.jobs, len(reading.prompt)) for reading in readings])
        _finish(self._read(readings, places))
        self._begin(readings)

    def _prefill_alone(self, reading: Reading) -> Generator[None, None, None]:
        """The same for one long prompt, with pauses in which the shelves may change: its keys and values
        stand alone until it is read.
        """
        alone = self.cache.alone(len(reading.prompt))
        yield from self._read([reading], [(alone, slice(0, 1))])
        alone.lengths[0] = len(reading.prompt)
        reading.jobs = [job for job in reading.jobs if not job.future.done()]  # the others were cancelled
        self.cache.start(reading.jobs, alone)
        self._begin([reading])

    def _read(
        self, readings: list[Reading], places: list[tuple[Shelf, slice]]
    ) -> Generator[None, None, None]:
        """Write the keys and values of prompts to slots of shelves, and find out how the prompts end. With a
        pause after each layer.
        """
        for reading, (shelf, slots) in zip(readings, places, strict=True):
            for i, piece in enumerate(reading.known):
                shelf.put(slice(None), slots, i * PIECE, piece.keys, piece.values)
        unread = [(reading, *place) for reading, place in zip(readings, places, strict=True) if len(reading)]
        if not unread:
            return

        def keep(layer: int, i: int, keys: torch.Tensor, values: torch.Tensor) -> None:
            reading, shelf, slots = unread[i]
            shelf.put(slice(layer, layer + 1), slots, reading.start, keys[None], values[None])

        packed = Packed([r.tokens for r, *_ in unread], self.model.device, [r.known for r, *_ in unread])
        leaders = [reading.jobs[0] for reading, *_ in unread]
        adapters = adapters_for(leaders, packed.lengths, self.model, self.model.dtype)
        hidden = yield from self.model.hidden_in_layers(packed, adapters, keep)
        for (reading, shelf, slots), end in zip(unread, packed.starts[1:], strict=True):
            reading.end = hidden[end - 1 : end].clone()
            self.prefixes.keep(reading, shelf, slots.start)

    def _begin(self, readings: list[Reading]) -> None:
        """Sample the first token of jobs whose prompts are read."""
        jobs = [job for reading in readings for job in reading.jobs]
        ends = torch.cat([reading.end.expand(len(reading.jobs), -1) for reading in readings])
        adapters = adapters_for(jobs, [1] * len(jobs), self.model, self.model.dtype)
        self._append(jobs, self.model.logits(ends, adapters))

    def _decode(self, jobs: list[SampleJob]) -> None:
        """One token more for each job."""
        tokens = torch.tensor([job.tokens[-1] for job in jobs], device=self.model.device)
        if self._adapters is None or self._adapters[0] != jobs:
            self._adapters = jobs, adapters_for(jobs, [1] * len(jobs), self.model, self.model.dtype)
        self._append(jobs, self.model.decode(tokens, self.cache, self._adapters[1]))

    def _append(self, jobs: list[SampleJob], logits: torch.Tensor) -> None:
        """Choose the next token of each job from (jobs, vocab) logits; jobs that end leave their slot."""
        chosen = first_of_best(logits)
        drawing = [i for i, job in enumerate(jobs) if job.temperature > 0]
        if drawing:
            rows = torch.tensor(drawing, device=logits.device)
            chosen[rows] = draw(
                logits if len(drawing) == len(jobs) else logits[rows], [jobs[i] for i in drawing]
            )
        logprobs = log_softmax(logits, chosen[:, None])[:, 0]
        for i, (job, token, logprob) in enumerate(zip(jobs, chosen.tolist(), logprobs.tolist(), strict=True)):
            job.tokens.append(token)
            job.logprobs.append(logprob)
            if job.topk_logprobs:
                every = torch.log_softmax(logits[i], dim=-1)
                top = likeliest(every, job.topk_logprobs)
                job.topk.append((top.int().cpu().numpy(), every[top].cpu().numpy()))
            if job.on_token:
                job.on_token()
            if reason := self._stop_reason(job):
                self.cache.remove(job)
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


def first_of_best(logits: torch.Tensor) -> torch.Tensor:
    """The likeliest token of each row of (jobs, vocab) logits, of equally likely ones the first: (jobs,)."""
    if logits.device.type == "cpu":  # NumPy takes a tenth of PyTorch's time
        return torch.from_numpy(logits.numpy().argmax(axis=1))
    return logits.argmax(dim=-1)


def draw(logits: torch.Tensor, jobs: list[SampleJob]) -> torch.Tensor:
    """A token for each row of (jobs, vocab) logits by its job's temperature, top-k, top-p and random numbers:
    (jobs,).
    """
    temperatures = torch.tensor([max(job.temperature, COLDEST) for job in jobs], device=logits.device)[
        :, None
    ]
    scaled = logits.sub(logits.amax(dim=-1, keepdim=True)).div_(temperatures)
    for i, job in enumerate(jobs):
        if 0 < job.top_k < scaled.shape[1]:
            _keep_only(scaled[i], likeliest(logits[i], job.top_k), -torch.inf)
    probabilities = torch.softmax(scaled, dim=-1)
    for i, job in enumerate(jobs):
        if job.top_p < 1:
            _keep_nucleus(probabilities[i], job.top_p)
    cumulative = probabilities.cumsum(dim=-1)
    # A number in (0, total]: the first token whose running total reaches it has a probability above zero.
    wanted = (1 - torch.tensor([job.random() for job in jobs], device=logits.device)) * cumulative[
        :, -1
    ].double()
    return torch.searchsorted(cumulative, wanted.float()[:, None].contiguous())[:, 0].clamp_(
        max=logits.shape[1] - 1
    )


def likeliest(scores: torch.Tensor, k: int) -> torch.Tensor:
    """Ids of the k highest of (vocab,) scores, highest first; of equal ones, which bfloat16 makes often, the
    lower ids.
    """
    least = scores.topk(k).values[-1]
    ids = torch.cat([(scores > least).nonzero()[:, 0], (scores == least).nonzero()[:, 0]])[:k]
    return ids[scores[ids].sort(descending=True, stable=True).indices]


def _keep_nucleus(probabilities: torch.Tensor, top_p: float) -> None:
    """Set to zero, in place, all but the fewest most likely tokens whose probabilities reach `top_p`."""
    values = probabilities.topk(min(NUCLEUS, len(probabilities))).values
    if float(values.sum()) < top_p and len(values) < len(probabilities):
        values = probabilities.sort(descending=True).values
    inside = int((values.cumsum(0) - values < top_p).sum())  # the token that crosses top_p stays in
    _keep_only(probabilities, likeliest(probabilities, max(inside, 1)), 0.0)


def _keep_only(scores: torch.Tensor, ids: torch.Tensor, other: float) -> None:
    """Set all scores but those of `ids` to `other`, in place."""
    kept = scores[ids]
    scores.fill_(other)
    scores[ids] = kept
