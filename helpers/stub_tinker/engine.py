"""The one thread that computes. Training requests of each client run in order; clients take turns; sampling runs between.

One thread, because two cores are best given to one matrix product at a time.
"""

import contextlib
import ctypes
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch

from helpers.stub_tinker.model import Model
from helpers.stub_tinker.sampling import Sampler, SampleJob, ScoreJob

log = logging.getLogger("stub_tinker")

DECODE_STEPS = 8  # between two training requests: a training step takes about as long as 20 of them


def best_precision(device: torch.device) -> torch.dtype:
    """bfloat16 where matrix products in it are fast (GPU, AMX or AVX512-BF16), else float32."""
    if device.type == "cuda":
        return torch.bfloat16
    fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def _give_back_memory() -> None:
    """Return freed memory to the system: glibc keeps 1 to 2 GiB of a training step's otherwise."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


class Base:
    """A base model that the server offers: loaded at its first use, once."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype):
        self.folder, self._device, self._dtype = folder, device, dtype
        self._loaded: tuple[Model, Sampler] | None = None
        self._lock = threading.Lock()

    def load(self) -> tuple[Model, Sampler]:
        """The model and its sampler; the first call takes a few seconds."""
        with self._lock:
            if self._loaded is None:
                from transformers import AutoTokenizer

                model = Model(self.folder, self._device, self._dtype)
                self._loaded = model, Sampler(model, AutoTokenizer.from_pretrained(self.folder))
            return self._loaded

    @property
    def sampler(self) -> Sampler | None:
        return self._loaded[1] if self._loaded else None


class Engine(threading.Thread):
    """Runs training requests and sampling jobs; `submit`, `sample` and `score` may be called from any thread."""

    def __init__(self, bases: dict[str, Base]):
        super().__init__(name="engine", daemon=True)
        self.bases = bases
        self.running_name = ""
        self._wake = threading.Condition()
        self._queues: OrderedDict[str, deque[tuple[Callable[[], Any], Future]]] = OrderedDict()
        self._arrivals: deque[tuple[str, SampleJob | ScoreJob]] = deque()
        self._stopping = False
        self._trimmed = True

    def submit(self, client: str, work: Callable[[], Any]) -> Future:
        """Run `work` after all that `client` submitted before."""
        future: Future = Future()
        with self._wake:
            self._queues.setdefault(client, deque()).append((work, future))
            self._wake.notify()
        return future

    def sample(self, base: str, job: SampleJob | ScoreJob) -> None:
        """Queue a sampling or scoring job on a base model."""
        with self._wake:
            self._arrivals.append((base, job))
            self._wake.notify()

    def stop(self) -> None:
        """Finish what was accepted, then end the thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify()

    @property
    def queued(self) -> int:
        samplers = [base.sampler for base in self.bases.values() if base.sampler]
        return sum(map(len, self._queues.values())) + len(self._arrivals) + sum(
            len(s.waiting) + len(s.running) + len(s.scoring) for s in samplers
        )

    def run(self) -> None:
        while True:
            with self._wake:
                while not (self._queues or self._arrivals or self._sampling() or self._stopping):
                    if not self._wake.wait(timeout=1) and not self._trimmed:
                        _give_back_memory()
                        self._trimmed = True
                self._trimmed = False
                if self._stopping and not (self._queues or self._arrivals or self._sampling()):
                    return
                task = self._next_task()
                arrivals, self._arrivals = self._arrivals, deque()
            for base, job in arrivals:
                self._enqueue(base, job)
            if task:
                self._run_task(*task)
            for sampler in self._sampling():
                sampler.work(DECODE_STEPS)

    def _sampling(self) -> list[Sampler]:
        return [base.sampler for base in self.bases.values() if base.sampler and base.sampler.busy]

    def _next_task(self) -> tuple[Callable[[], Any], Future] | None:
        """The oldest request of the client whose turn it is; that client then goes to the end of the line."""
        if not self._queues:
            return None
        client, queue = self._queues.popitem(last=False)
        task = queue.popleft()
        if queue:
            self._queues[client] = queue
        return task

    def _run_task(self, work: Callable[[], Any], future: Future) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except Exception as error:  # handed to the client that waits for it
            future.set_exception(error)

    def _enqueue(self, base: str, job: SampleJob | ScoreJob) -> None:
        try:
            sampler = self.bases[base].load()[1]
            (sampler.scoring if isinstance(job, ScoreJob) else sampler.waiting).append(job)
        except Exception as error:  # a model that does not load fails the request, not the server
            job.future.set_exception(error)
