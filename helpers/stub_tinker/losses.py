"""The losses of the wire: each is a sum over tokens and datums, as Tinker's are."""

from dataclasses import dataclass

import numpy as np
import torch

REQUIRED = {
    "cross_entropy": ("target_tokens",),
}


@dataclass
class Example:
    """One datum: input tokens (n,), target tokens (n,), and the loss's own float inputs (n,) by name."""

    tokens: list[int]
    targets: np.ndarray
    inputs: dict[str, np.ndarray]


def token_loss(name: str, config: dict[str, float], logprobs: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Loss of each token, (tokens,), to be summed. `logprobs` are the model's of the target tokens."""
    if name == "cross_entropy":
        return -logprobs * inputs["weights"]
    raise ValueError(f"unknown loss {name!r}")


def needs_gradient(name: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Which tokens (n,) can have a gradient: the others need no backward pass through the vocabulary."""
    if name == "cross_entropy":
        return inputs["weights"] != 0
    raise ValueError(f"unknown loss {name!r}")
