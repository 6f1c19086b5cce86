"""Learners of a class that shares a stub: each trains and samples, step by step, and keeps what it got."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from stub import Server, prompt, train
from tinker import types

HANG_SECONDS = 300
SAMPLED, TRAINED = 32, 120  # tokens of one sampling request and of one training step of a learner
PARAMS = [
    types.SamplingParams(max_tokens=8, temperature=0.0, seed=11, stop=[]),
    types.SamplingParams(max_tokens=8, temperature=1.0, seed=11, stop=[]),
]


@dataclass
class Learner:
    """What one client did until the end of the lesson."""

    key: str = ""
    losses: list[float] = field(default_factory=list)
    samples: list[list[list[list[int]]]] = field(default_factory=list)
    scores: list[list[float | None]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of each step

    @property
    def tokens(self) -> int:
        return TRAINED * len(self.losses) + 2 * SAMPLED * len(self.samples)

    def work(self, server: Server, begin: threading.Barrier, go_on: Callable[["Learner"], bool]) -> None:
        service = server.connect(self.key)
        client = service.create_lora_training_client(
            server.model, rank=8, seed=1, train_unembed=False
        ).result()
        sampler = service.create_sampling_client(base_model=server.model).result()
        begin.wait(timeout=HANG_SECONDS)
        while go_on(self):
            started = time.perf_counter()
            self.losses += train(client, 1)
            futures = [sampler.sample(prompt(), 4, params) for params in PARAMS]
            scores = sampler.compute_logprobs(prompt())
            self.samples.append(
                [[sequence.tokens for sequence in future.result().sequences] for future in futures]
            )
            self.scores.append(scores.result())
            self.seconds.append(time.perf_counter() - started)
        service.close("success").result()
