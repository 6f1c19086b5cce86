"""What a sampler is asked for, and what it answers: one sequence to sample, or a prompt to score."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from helpers.stub_tinker.lora import Adapter
from helpers.stub_tinker.prefixes import digests


@dataclass(eq=False)
class SampleJob:
    """One sequence to sample. `future` gets a `Sequence`."""

    session: str
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
    topk: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    generator: torch.Generator | None = None
    owner: str = ""
    on_token: Callable[[], None] | None = None  # called after each, on the engine's thread

    @property
    def positions(self) -> int:
        """Places in the cache that it may come to need."""
        return len(self.prompt) + self.max_tokens

    @cached_property
    def pieces(self) -> list[bytes]:
        """Digests of the prompt's pieces."""
        return digests(self.prompt)

    def random(self) -> float:
        """The next of the job's own random numbers in [0, 1)."""
        if self.generator is None:
            self.generator = torch.Generator()
            self.generator.seed() if self.seed is None else self.generator.manual_seed(self.seed)
        return float(torch.rand((), generator=self.generator, dtype=torch.float64))


@dataclass
class Sequence:
    """A sampled sequence: tokens, their untempered logprobs, and why it ended (`stop` or `length`)."""

    tokens: list[int]
    logprobs: list[float]
    stop_reason: str
    topk: list[tuple[np.ndarray, np.ndarray]]


@dataclass(eq=False)
class ScoreJob:
    """Logprobs at the positions of a prompt after the first. `future` gets a `PromptScores`.

    Attributes:
        last: how many of the prompt's tokens are scored, counted from its end.
        topk: how many most likely tokens at each scored position.
        targets: (n - 1, k) token ids whose logprobs are wanted; -1 asks for none.
        draws: how many tokens to draw at each position, at `temperature`.
    """

    session: str
    prompt: list[int]
    adapter: Adapter | None
    last: int
    topk: int = 0
    targets: np.ndarray | None = None
    draws: int = 0
    temperature: float = 1.0
    seed: int | None = None
    future: Future = field(default_factory=Future)
    owner: str = ""


@dataclass
class PromptScores:
    """For a prompt of n tokens. What was not asked for is None.

    Attributes:
        own: (n,) float32, NaN where not scored.
        topk: ids and logprobs, (n, k) each; id 0 with logprob -99999 where not scored, which is the wire's
            "none".
        targets: (n - 1, k) float32, 0 where the request had -1.
        draws: ids and logprobs, (n - 1, k) each.
    """

    own: np.ndarray
    topk: tuple[np.ndarray, np.ndarray] | None = None
    targets: np.ndarray | None = None
    draws: tuple[np.ndarray, np.ndarray] | None = None
