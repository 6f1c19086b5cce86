"""Keys and values of running sequences, on shelves: a few for each capacity, with the sequences that need it
now.

How much room a sequence has depends on its own length only. In one room for all, the longest would decide in
what order the others' attention is summed up.
"""

import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import torch
import torch.nn.functional as F

from helpers.stub_tinker.kernels import round_up
from helpers.stub_tinker.steady import batched, fill

STEP = 64  # positions by which capacities grow up to 512; after that, by a quarter of the power of two below
# Of all slots of a shelf, if these are more than `LEAST_SLOTS`: it is copied when it grows.
SHELF_POSITIONS, LEAST_SLOTS = 8 * 1024, 8


def capacity_for(length: int) -> int:
    """The capacity of the shelf of a sequence with `length` positions."""
    return round_up(length, max(STEP, 2 ** int(math.log2(max(length - 1, 1))) // 4))


class Shelf:
    """Keys and values of sequences with the same capacity; `jobs` stand in the first slots.

    Keys, times 1/√dim, and values are (layers, slots, kv_heads, capacity, dim): with plain matrix products,
    attention takes two thirds of the time of PyTorch's fused one at 16 sequences and half at 64.
    """

    def __init__(self, config, dtype: torch.dtype, device: torch.device, capacity: int):
        self.capacity, self.jobs, self.slots = capacity, [], 0
        self.most = max(LEAST_SLOTS, SHELF_POSITIONS // capacity // 4 * 4)  # sequences
        self.group = config.heads // config.kv_heads
        self.keys = torch.zeros(
            config.layers, 0, config.kv_heads, capacity, config.head_dim, dtype=dtype, device=device
        )
        self.values = self.keys.clone()
        self.lengths = torch.zeros(0, dtype=torch.long, device=device)

    def sizes(self, count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Numbers of slots at once, for the products with keys and with values."""
        heads, dim = self.keys.shape[2], self.keys.shape[4]
        trial = functools.partial(batched, heads, self.group)
        where = self.keys.dtype, self.keys.device, torch.get_num_threads()
        with_keys, with_values = (
            trial(dim, self.capacity, True, *where),
            trial(self.capacity, dim, False, *where),
        )
        return with_keys.sizes(count), with_values.sizes(count)

    def fit(self, count: int) -> None:
        """Slots for `count` sequences and the filler beside them; memory that is not needed any more is given
        back. A shelf that has slots already grows by half of them at least, up to `most`: all is copied then.
        """
        slots = max(map(sum, self.sizes(count)), default=0)
        if slots > self.slots:
            self.resize(max(slots, min(self.slots * 3 // 2, self.most)))
        elif slots <= self.slots // 2:
            self.resize(slots)

    def resize(self, slots: int) -> None:
        self.keys, self.values = _resized(self.keys, slots), _resized(self.values, slots)
        self.lengths = F.pad(self.lengths, (0, slots - self.slots))
        self.slots = slots

    def put(self, layers: slice, slots: slice, start: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write (layers, length, kv_heads, head_dim) keys, times 1/√dim, and values from `start` on."""
        places = slice(start, start + keys.shape[1])
        for kept, new in ((self.keys, keys), (self.values, values)):
            kept[layers, slots, :, places] = new.transpose(1, 2)[:, None]

    def copy(self, slot: int, places: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a slot at some positions, in the form that `put` takes."""
        keys, values = self.keys[:, slot, :, places], self.values[:, slot, :, places]
        return keys.transpose(1, 2).contiguous(), values.transpose(1, 2).contiguous()

    def take(self, other: "Shelf", source: int, target: int) -> None:
        """Copy a slot of a shelf, this one or one of less capacity, onto a slot of this one."""
        reach = other.capacity
        self.keys[:, target, :, :reach] = other.keys[:, source]
        self.values[:, target, :, :reach] = other.values[:, source]
        self.lengths[target] = other.lengths[source]

    def remove(self, job: Hashable) -> None:
        """Free a job's slot by moving the last one into it."""
        slot, last = self.jobs.index(job), len(self.jobs) - 1
        if slot != last:
            self.take(self, last, slot)
            self.jobs[slot] = self.jobs[last]
        self.jobs.pop()


def _resized(old: torch.Tensor, slots: int) -> torch.Tensor:
    """(layers, slots, …) with fewer slots, or with more of zeros."""
    kept = min(old.shape[1], slots)
    new = old.new_empty(len(old), slots, *old.shape[2:])
    new[:, :kept] = old[:, :kept]
    new[:, kept:] = 0
    return new


class Cache:
    """The shelves. Sequences stand in the order of `jobs`: by capacity, by shelf, then by slot."""

    def __init__(self, model):
        self._new = functools.partial(Shelf, model.config, model.dtype, model.device)
        self._shelves: list[Shelf] = []
        self.parked: dict[Any, Shelf] = {}  # what rests, each on a shelf of its own

    @property
    def shelves(self) -> list[Shelf]:
        return sorted(self._shelves, key=lambda shelf: shelf.capacity)

    @property
    def jobs(self) -> list:
        return [job for shelf in self.shelves for job in shelf.jobs]

    def lengths(self) -> torch.Tensor:
        """Positions of each sequence that are filled."""
        return torch.cat([shelf.lengths[: len(shelf.jobs)] for shelf in self.shelves])

    def add_all(self, arrivals: list[tuple[list, int]]) -> list[tuple[Shelf, slice]]:
        """Slots for sequences that go on, given as jobs with the same number of positions, and that number:
        for each, the shelf, and where on it. A shelf grows once.
        """
        places: list[tuple[Shelf, slice]] = []
        more: Counter[Shelf] = Counter()
        for jobs, length in arrivals:
            shelf = self._shelf(length + 1, len(jobs), more)
            first = len(shelf.jobs) + more[shelf]
            more[shelf] += len(jobs)
            places.append((shelf, slice(first, first + len(jobs))))
        for shelf, count in more.items():
            shelf.fit(len(shelf.jobs) + count)
        for (shelf, slots), (jobs, length) in zip(places, arrivals, strict=True):
            shelf.jobs.extend(jobs)
            # What another sequence left behind the length, NaN of spoilt weights perhaps, would be multiplied
            # by zero, which must give zero.
            shelf.keys[:, slots, :, length:], shelf.values[:, slots, :, length:] = 0, 0
            shelf.lengths[slots] = length
        return places

    def alone(self, length: int) -> Shelf:
        """A shelf beside the others for one sequence of `length` positions."""
        shelf = self._new(capacity_for(length))
        shelf.resize(1)
        return shelf

    def remove(self, job: Hashable) -> None:
        if self.parked.pop(job, None) is None:
            next(shelf for shelf in self.shelves if job in shelf.jobs).remove(job)

    def capacities(self) -> dict[Hashable, int]:
        """The room that each sequence has, resting ones too."""
        every = {job: shelf.capacity for shelf in self.shelves for job in shelf.jobs}
        return every | {job: shelf.capacity for job, shelf in self.parked.items()}

    def park(self, job: Hashable) -> None:
        """Let a sequence rest: it keeps its keys and values, and gets no tokens."""
        shelf = next(shelf for shelf in self.shelves if job in shelf.jobs)
        self.parked[job] = alone = self.alone(shelf.capacity)
        alone.take(shelf, shelf.jobs.index(job), 0)
        shelf.remove(job)

    def resume(self, job: Hashable) -> None:
        """Let a sequence that rests go on, on a larger shelf if it has filled its own."""
        self.start([job], self.parked.pop(job))

    def start(self, jobs: list, alone: Shelf) -> None:
        """Let sequences go on from the one that stands alone."""
        [(shelf, slots)] = self.add_all([(jobs, int(alone.lengths[0]))])
        for slot in range(slots.start, slots.stop):
            shelf.take(alone, 0, slot)

    def settle(self, may_grow: Callable[[Hashable, int], bool]) -> None:
        """Move what has filled its shelf to one with more room, if it may have so much, or else park it. Drop
        empty shelves.
        """
        for shelf in self.shelves:
            lengths = shelf.lengths[: len(shelf.jobs)].tolist()
            for job in [
                job for job, length in zip(shelf.jobs, lengths, strict=True) if length >= shelf.capacity
            ]:
                if not may_grow(job, capacity_for(shelf.capacity + 1)):
                    self.park(job)
                    continue
                [(larger, slots)] = self.add_all([([job], shelf.capacity)])
                larger.take(shelf, shelf.jobs.index(job), slots.start)
                shelf.remove(job)
            shelf.fit(len(shelf.jobs))
        self._shelves = [shelf for shelf in self._shelves if shelf.jobs]

    def step(self) -> "Step":
        return Step(self.shelves)

    def _shelf(self, length: int, count: int, more: Counter[Shelf]) -> Shelf:
        """A shelf for sequences of this length with room for `count` beside `more`, a new one if there is
        none.
        """
        capacity = capacity_for(length)
        for shelf in self._shelves:
            if shelf.capacity == capacity and len(shelf.jobs) + more[shelf] + count <= shelf.most:
                return shelf
        self._shelves.append(self._new(capacity))
        return self._shelves[-1]


class Step:
    """The attention of one new token a sequence, in every layer. Call `done` after the last."""

    def __init__(self, shelves: list[Shelf]):
        starts = itertools.accumulate((len(shelf.jobs) for shelf in shelves), initial=0)
        self._parts = [ShelfStep(shelf, start) for shelf, start in zip(shelves, starts, strict=False)]

    def attend(self, n: int, queries, keys, values) -> torch.Tensor:
        """Keep keys and values, (rows, kv_heads, head_dim), and attend with queries, (rows, heads, head_dim),
        in layer `n`: (rows, heads·head_dim), of which those after the last sequence's mean nothing.
        """
        attended = [part.attend(n, queries, keys, values) for part in self._parts]
        if len(attended) > 1:
            attended = [part[: len(step.places)] for part, step in zip(attended, self._parts, strict=True)]
            attended = [torch.cat(attended)]
        return fill(attended[0], len(queries))[: len(queries)]

    def done(self) -> None:
        for part in self._parts:
            part.places += 1


class ShelfStep:
    """The part of one shelf, whose sequences' rows begin at `start`. Queries that share a key head stand as
    positions of one sequence.
    """

    def __init__(self, shelf: Shelf, start: int):
        count, (with_keys, with_values) = len(shelf.jobs), shelf.sizes(len(shelf.jobs))
        self.slots = max(sum(with_keys), sum(with_values))
        self.shelf, self.part = shelf, slice(start, start + count)
        self.places = shelf.lengths[:count]
        device, heads = shelf.keys.device, shelf.keys.shape[2]
        self._rows = torch.arange(count, device=device)
        beyond = torch.arange(shelf.capacity, device=device)[None] > shelf.lengths[: self.slots, None]
        self._mask = shelf.keys.new_zeros(self.slots, 1, 1, shelf.capacity).masked_fill_(
            beyond[:, None, None], -torch.inf
        )
        self._weights = shelf.keys.new_empty(self.slots * heads, shelf.group, shelf.capacity)
        self._attended = shelf.keys.new_empty(self.slots * heads, shelf.group, shelf.keys.shape[4])
        self._with_keys, self._with_values = (_parts(sizes, heads) for sizes in (with_keys, with_values))

    def attend(self, n: int, queries, keys, values) -> torch.Tensor:
        """(slots, heads·head_dim) for the sequences of this shelf and filler."""
        all_keys, all_values = self.shelf.keys[n], self.shelf.values[n]
        heads, capacity, dim = all_keys.shape[1:]
        all_keys[self._rows, :, self.places] = keys[self.part] * dim**-0.5
        all_values[self._rows, :, self.places] = values[self.part]
        q = fill(queries[self.part.start :][: self.slots], self.slots).reshape(self.slots * heads, -1, dim)
        for part in self._with_keys:
            transposed = all_keys.view(-1, capacity, dim)[part].transpose(1, 2)
            torch.bmm(q[part], transposed, out=self._weights[part])
        scores = self._weights.view(self.slots, heads, -1, capacity).add_(self._mask)
        weights = torch.softmax(scores, dim=-1).view(-1, self.shelf.group, capacity)
        for part in self._with_values:
            torch.bmm(weights[part], all_values.view(-1, capacity, dim)[part], out=self._attended[part])
        return self._attended.view(self.slots, -1)


def _parts(sizes: tuple[int, ...], each: int) -> list[slice]:
    """Where products of so many slots, with `each` matrices a slot, begin and end."""
    ends = [end * each for end in itertools.accumulate(sizes, initial=0)]
    return [slice(start, end) for start, end in itertools.pairwise(ends)]
