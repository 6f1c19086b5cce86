"""Who has a place in the running batch: turns by owner, and room in the cache for those who go on.

A sample that gets longer needs more room. Room is given as it is needed, not for the longest that a sample
may become, and so it can run out. The oldest sample then goes on alone, into room that is always left for it,
and the others rest until it has ended. What rests gets the same tokens as if it had not.
"""

import itertools
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from helpers.stub_tinker import prefixes
from helpers.stub_tinker.cache import Cache, capacity_for

SLOTS = 96  # sequences that are decoded at once
OWNER_SLOTS = 64  # of one owner at most, so that a newcomer need not wait
# Of all slots in use. With the prefixes that are kept, 1.5 GiB of keys and values at 135M parameters.
POSITIONS = 64 * 1024 - prefixes.POSITIONS
PRESENT_SECONDS = 5  # for which an owner without samples counts as there: who comes back soon finds its place


class Places:
    """Which samples run, rest or wait. A job has an `owner`, a `prompt`, and `positions` it may come to need.

    Args:
        reading: says which samples are about to join, because their prompt is being read.
    """

    def __init__(self, cache: Cache, reading: Callable[[], list]):
        self._cache, self._reading = cache, reading
        self._orders: dict[Any, int] = {}  # of samples that run or rest, by when they began
        self._count = itertools.count()
        self._seen: dict[str, float] = {}  # when an owner last had something here

    def _admitted(self) -> list:
        """What runs or rests, oldest first."""
        jobs = [*self._cache.jobs, *self._cache.parked]
        self._orders = {job: self._orders.get(job) or next(self._count) + 1 for job in jobs}
        return sorted(jobs, key=self._orders.__getitem__)

    def _share(self, whole: int, alone: int) -> int:
        """An owner's part of `whole`, or `alone` if nobody else is there."""
        return alone if len(self._seen) <= 1 else min(alone, whole // len(self._seen))

    def _slots(self) -> int:
        return max(self._share(SLOTS, OWNER_SLOTS), 1)

    def arrange(self, waiting: dict[str, deque]) -> None:
        """Let each owner's oldest samples run, as many as its share; the others rest."""
        now, admitted = time.monotonic(), self._admitted()
        self._seen |= dict.fromkeys([*waiting, *(job.owner for job in admitted)], now)
        self._seen = {owner: t for owner, t in self._seen.items() if now - t < PRESENT_SECONDS}
        running: Counter[str] = Counter()
        for job in admitted:
            rests = job in self._cache.parked
            if running[job.owner] >= self._slots() or running.total() >= SLOTS:
                if not rests:
                    self._cache.park(job)
            elif not rests:
                running[job.owner] += 1
            elif self.may_grow(job, self._next_capacity(job)):
                self._cache.resume(job)
                running[job.owner] += 1

    def _next_capacity(self, job: Any) -> int:
        """The capacity that a resting job goes on with."""
        shelf = self._cache.parked[job]
        return capacity_for(max(int(shelf.lengths[0]) + 1, shelf.capacity))

    def may_grow(self, job: Any, capacity: int) -> bool:
        """Whether a sample that runs or rests may have so much room now: the oldest always may."""
        admitted = [*self._admitted(), *self._reading()]
        return job is admitted[0] or self._has_room(job, capacity, admitted)

    def _has_room(self, job: Any, capacity: int, admitted: list) -> bool:
        """Whether a job fits beside those admitted, with room for the first of them to get as long as any."""
        rooms = self._cache.capacities()
        own, everyones = capacity, capacity
        for other in admitted[1:]:
            if other is not job:
                room = rooms.get(other) or _room_to_begin(other)
                everyones += room
                own += room if other.owner == job.owner else 0
        free = POSITIONS - max(capacity_for(other.positions) for other in [job, *admitted])
        return everyones <= free and own <= self._share(free, free * 7 // 8)

    def next_owner(
        self, waiting: dict[str, deque], joining: list, can_begin: Callable[[Any], bool]
    ) -> str | None:
        """Whose next sample can start beside those that run and `joining`: the owner with the fewest running
        first. A sample that finds no room is waited for: shorter ones of its owner do not pass it.
        """
        if not waiting or len(self._cache.jobs) + len(joining) >= SLOTS:
            return None
        admitted = [*self._admitted(), *self._reading(), *joining]
        counts = Counter(job.owner for job in admitted)
        for owner in sorted(waiting, key=lambda o: counts[o]):
            job = waiting[owner][0]
            if counts[owner] >= self._slots() or not can_begin(job):
                continue
            if not admitted or self._has_room(job, _room_to_begin(job), admitted):
                return owner
        return None


def _room_to_begin(job: Any) -> int:
    return capacity_for(len(job.prompt) + 1)
