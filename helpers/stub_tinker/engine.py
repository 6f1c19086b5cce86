"""The one thread that computes: two cores are best given to one matrix product at a time."""

import contextlib
import ctypes
import logging
import os
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from helpers.stub_tinker.jobs import SampleJob, ScoreJob
from helpers.stub_tinker.model import Model
from helpers.stub_tinker.sampling import Sampler

log = logging.getLogger("stub_tinker")

TRIM_SECONDS = 15  # of work between two times that memory is given back: that costs a third of a second
DECODE_STEPS = 8  # tokens that each running sequence gains in a turn
TURN_SECONDS = 0.05  # of training, then the next pause ends the turn
CREDIT_SECONDS = 0.1  # of compute that an owner keeps a claim to while it asks for nothing
PAUSED_BYTES = 1 << 30  # that training requests hold together while they wait for their next turn


def best_precision(device: torch.device) -> torch.dtype:
    """bfloat16 where matrix products in it are fast (GPU, AMX or AVX512-BF16), else float32."""
    if device.type == "cuda":
        return torch.bfloat16
    fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def _give_back_memory() -> None:
    """Return freed memory to the system: glibc keeps 1 to 2 GiB of a training step's otherwise, and torch all
    that it took of a GPU's.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


class SessionEnded(ValueError):
    """A request was dropped because its client closed its session."""

    def __init__(self):
        super().__init__("the session ended before this request was done")


class Cancelled(ValueError):
    """A sampling request was given up by its client."""

    def __init__(self):
        super().__init__("the request was cancelled by its client")


class Base:
    """A base model that the server offers: loaded at its first use, once, by `Engine.load`."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype):
        self.folder, self._device, self._dtype = folder, device, dtype
        self.loaded: tuple[Model, Sampler] | None = None

    def load(self) -> tuple[Model, Sampler]:
        """The model and its sampler; takes a few seconds."""
        if self.loaded is None:
            from transformers import AutoTokenizer

            model = Model(self.folder, self._device, self._dtype)
            self.loaded = (
                model,
                Sampler(model, AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)),
            )
        return self.loaded

    @property
    def sampler(self) -> Sampler | None:
        return self.loaded[1] if self.loaded else None


@dataclass
class Task:
    """One request of a training client. `work` returns a result, or a generator that pauses where others may
    have a turn, and then says how many bytes it will hold at its next pauses.
    """

    session: str
    owner: str
    work: Callable[[], Any]
    future: Future = field(default_factory=Future)
    paused: Generator | None = None
    asks: int = 0  # bytes
    holds: int = 0


@dataclass(frozen=True)
class Turn:
    """A piece of work that can be done now: of a training client, or of the sampler of a base model."""

    owner: str
    kind: str  # "train", or one of sampling.KINDS
    client: str = ""
    sampler: Sampler | None = None
    begun: bool = False  # a micro-batch that was interrupted


class Engine(threading.Thread):
    """Runs training requests and sampling jobs; every public method may be called from any thread.

    Requests of one training client run in order. The owner that had the least compute goes next, whatever it
    waits for, and of the kinds of work that it waits for the one that had least. A turn is some layers of a
    micro-batch, a batch of prompts, or a few new tokens for all that is being sampled: their owners share the
    time of that.
    """

    def __init__(self, bases: dict[str, Base]):
        super().__init__(name="engine", daemon=True)
        self.bases = bases
        self._wake = threading.Condition()
        self._queues: dict[str, deque[Task]] = {}  # by training client; never empty
        self._served: defaultdict[Any, float] = defaultdict(
            float
        )  # seconds of compute, by owner, and by (owner, kind)
        self.last_turns: dict[str, float] = {}  # by owner, on the clock of time.monotonic
        self.busy: defaultdict[str, float] = defaultdict(float)  # seconds of compute, by kind of turn
        self._waiting: set[str] = set()  # owners that something could be done for at the last turn
        self._arrivals: deque[tuple[str, SampleJob | ScoreJob]] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future]] = deque()
        self._ended: set[str] = set()  # sessions whose work is to be dropped
        self._stopping = False
        self._trimmed = True
        self._trimmed_at = time.monotonic()

    def submit(self, client: str, session: str, owner: str, work: Callable[[], Any]) -> Future:
        """Run `work` after all that `client` submitted before."""
        task = Task(session, owner, work)
        with self._wake:
            self._queues.setdefault(client, deque()).append(task)
            self._wake.notify()
        return task.future

    def sample(self, base: str, job: SampleJob | ScoreJob) -> None:
        """Queue a sampling or scoring job on a base model."""
        with self._wake:
            self._arrivals.append((base, job))
            self._wake.notify()

    def call(self, work: Callable[[], Any]) -> Any:
        """Run `work` ahead of all that waits, and return what it returns.

        Every computation belongs on this thread, small ones too: a second thread that uses torch gets OpenMP
        threads of its own, and as soon as there are more of them than cores, OpenMP lets none of them spin.
        Every product then begins with a sleeping thread: sampling fell from 385 to 274 tokens/s after a
        single sum elsewhere.
        """
        if threading.current_thread() is self:
            return work()
        future: Future = Future()
        with self._wake:
            self._calls.append((work, future))
            self._wake.notify()
        return future.result()

    def load(self, base: str) -> tuple[Model, Sampler]:
        """A base model and its sampler; the first call takes a few seconds."""
        return self.bases[base].loaded or self.call(self.bases[base].load)

    def drop(self, session: str) -> None:
        """Forget what waits for a session that has ended."""
        with self._wake:
            self._ended.add(session)
            self._wake.notify()

    def cancel(self, base: str, jobs: list[SampleJob | ScoreJob]) -> None:
        """End jobs of a base model that nobody waits for any more."""
        chosen = list(jobs)

        def work() -> None:
            for job in chosen:  # also those that have not yet arrived at the sampler
                if not job.future.done():
                    job.future.set_exception(Cancelled())
            self.load(base)[1].drop(lambda job: job in chosen)

        self.call(work)

    def stop(self) -> None:
        """Finish what was accepted, then end the thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify()

    @property
    def queued(self) -> int:
        return sum(self.queued_by_session().values())

    def queued_by_session(self) -> Counter:
        """Requests and samples that wait or run, by session."""
        with self._wake:
            waiting = Counter(task.session for queue in self._queues.values() for task in queue)
            jobs = [job for _, job in self._arrivals]
        for base in self.bases.values():
            if base.sampler:
                jobs += base.sampler.jobs()
        waiting.update(job.session for job in jobs)
        return waiting

    def run(self) -> None:
        try:
            self._loop()
        except BaseException:  # a fault of ours: better no server than one that never answers
            log.critical(
                "the engine failed, and the server ends; start it again: saved checkpoints are kept",
                exc_info=True,
            )
            os._exit(70)

    def _loop(self) -> None:
        while True:
            with self._wake:
                while not (
                    self._queues
                    or self._arrivals
                    or self._calls
                    or self._sampling()
                    or self._ended
                    or self._stopping
                ):
                    if not self._wake.wait(timeout=1) and not self._trimmed:
                        _give_back_memory()
                        self._trimmed = True
                self._trimmed = False
                ended, self._ended = self._ended, set()
                arrivals, self._arrivals = self._arrivals, deque()
                calls, self._calls = self._calls, deque()
                dropped = [task for session in ended for task in self._drop_tasks(session)]
                if self._stopping and not (self._queues or arrivals or calls or dropped or self._sampling()):
                    return
            # Not under the lock: what waits for a future may take locks of its own.
            for dropped_task in dropped:
                if not dropped_task.future.done():
                    dropped_task.future.set_exception(SessionEnded())
            for work, future in calls:
                _run(work, future)
            for base, job in arrivals:
                self._enqueue(base, job)
            for session in ended:
                for base in self.bases.values():
                    if base.sampler:
                        base.sampler.drop(lambda job, ended=session: job.session == ended, SessionEnded())
                        base.sampler.prefixes.forget(session)
            if turn := self._next_turn():
                self._take(turn)

    def _sampling(self) -> list[Sampler]:
        return [base.sampler for base in self.bases.values() if base.sampler and base.sampler.busy]

    def _turns(self) -> list[Turn]:
        """What could be done now."""
        held = 0
        heads: dict[str, tuple[str, Task]] = {}  # by owner, who may have very many clients
        with self._wake:
            for client, queue in self._queues.items():
                held += queue[0].holds
                if queue[0].holds or queue[0].owner not in heads:  # an owner goes on with what it has begun
                    heads[queue[0].owner] = client, queue[0]
        turns: list[Turn] = []
        full = False
        for client, task in sorted(heads.values(), key=lambda h: (h[1].holds == 0, self._served[h[1].owner])):
            if task.asks > task.holds:
                # One that needs much room gets it when it's due: those behind it don't fill it up meanwhile.
                full = full or (held > task.holds and held - task.holds + task.asks > PAUSED_BYTES)
                if full:
                    continue
            turns.append(Turn(task.owner, "train", client, begun=task.holds > 0))
        for sampler in self._sampling():
            turns += [Turn(owner, kind, sampler=sampler) for owner, kind in sampler.turns()]
        return turns

    def _next_turn(self) -> Turn | None:
        """The turn of the owner that had the least compute. Of what it could have had while it asked for
        nothing it keeps a little: who trains and samples by turns then goes before one who never rests.
        """
        turns, served = self._turns(), self._served
        if not turns:
            served.clear()
        owners = {turn.owner for turn in turns}
        least = min((served[owner] for owner in owners & self._waiting), default=0.0)
        for owner in owners - self._waiting:
            served[owner] = max(served[owner], least - CREDIT_SECONDS)
        self._waiting = owners
        # What was begun goes on unless another is a turn behind: it holds memory.
        claims = {turn: served[turn.owner] - TURN_SECONDS * turn.begun for turn in turns}
        return min(turns, key=lambda t: (claims[t], served[t.owner, t.kind]), default=None)

    def _take(self, turn: Turn) -> None:
        """Do the work of a turn, and note whose time it took. Now and then, give memory back."""
        if turn.sampler is None:
            spent = {turn.owner: self._advance(turn.client)}
        else:
            spent = turn.sampler.work(DECODE_STEPS, lambda: bool(self._arrivals), (turn.owner, turn.kind))
        for owner, seconds in spent.items():
            self.last_turns[owner] = time.monotonic()
            self.busy[turn.kind] += seconds
            self._served[owner] += seconds
            self._served[owner, turn.kind] += seconds
        if time.monotonic() - self._trimmed_at > TRIM_SECONDS:  # a long loop never rests
            _give_back_memory()
            self._trimmed_at = time.monotonic()

    def _advance(self, client: str) -> float:
        """Run a client's first task up to a pause, and take it from its queue when it is done. Returns the
        seconds it took.
        """
        task, started = self._queues[client][0], time.perf_counter()
        task.holds, done = task.asks, self._step(task)
        while not done and task.asks <= task.holds and time.perf_counter() - started < TURN_SECONDS:
            done = self._step(task)
        with self._wake:
            queue = self._queues[client]
            if done:
                queue.popleft()
                del self._queues[client]
                if queue:  # behind the others of its owner
                    self._queues[client] = queue
        return time.perf_counter() - started

    def _step(self, task: Task) -> bool:
        """Returns True when the task has ended, one way or the other."""
        try:
            if task.paused is None:
                if not task.future.set_running_or_notify_cancel():
                    return True
                result = task.work()
                if not isinstance(result, Generator):
                    task.future.set_result(result)
                    return True
                task.paused = result
            task.asks = next(task.paused)
            task.holds = min(task.holds, task.asks)
            return False
        except StopIteration as end:
            task.future.set_result(end.value)
        except Exception as error:  # handed to the client that waits for it
            task.future.set_exception(error)
        return True

    def _drop_tasks(self, session: str) -> list[Task]:
        clients = [client for client, queue in self._queues.items() if queue[0].session == session]
        return [task for client in clients for task in self._queues.pop(client)]

    def _enqueue(self, base: str, job: SampleJob | ScoreJob) -> None:
        if job.future.done():  # cancelled meanwhile
            return
        try:
            self.load(base)[1].add(job)
        except Exception as error:  # a model that does not load fails the request, not the server
            job.future.set_exception(error)


def _run(work: Callable[[], Any], future: Future) -> None:
    try:
        future.set_result(work())
    except Exception as error:  # handed to the thread that waits for it
        future.set_exception(error)
