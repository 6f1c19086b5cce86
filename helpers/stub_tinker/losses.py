"""The losses of the wire, each a sum over tokens and datums, as on https://tinker-docs.thinkingmachines.ai/tinker/losses.

`p` is the model's logprob of a target token, `q` the logprob that the datum carries (the sampler's), `A` the
advantage.
"""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Loss:
    """What a loss takes: tensors a datum must have, tensors it may have, and its config with defaults."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    config: tuple[tuple[str, float], ...] = ()


CLIP = ("clip_low_threshold", "clip_high_threshold")  # in the config, or a tensor with one value a token
POLICY = ("target_tokens", "logprobs", "advantages")
LOSSES = {
    "cross_entropy": Loss(("target_tokens",), ("weights",)),
    "importance_sampling": Loss(POLICY),
    "ppo": Loss(POLICY, CLIP, tuple(zip(CLIP, (0.8, 1.2), strict=True))),
    "cispo": Loss(POLICY, CLIP, tuple(zip(CLIP, (0.0, 4.0), strict=True))),
    "dro": Loss(POLICY, (), (("beta", 0.05),)),
    # Defaults: section 5 of the GSPO paper, https://arxiv.org/abs/2507.18071
    "gspo": Loss((*POLICY, "sequence_ratio_mask"), CLIP, tuple(zip(CLIP, (1 - 3e-4, 1 + 4e-4), strict=True))),
}
NOT_OFFERED = {
    "stable_reinforce": "its objective is not published; use loss_fn='ppo' or 'importance_sampling'",
    "custom": "use forward_backward_custom, which computes the loss on the client",
}
FIELDS = {name for loss in LOSSES.values() for name in (*loss.required, *loss.optional)}


@dataclass
class Example:
    """One datum: input tokens (n,), targets (n, k), the loss's own inputs (n, k) by name; k is mostly 1.

    `flat` says that the targets came as (n,), and so do the logprobs of the answer.
    """

    tokens: list[int]
    targets: np.ndarray
    inputs: dict[str, np.ndarray]
    flat: bool = True


def datum_loss(
    name: str, config: dict[str, float], p: torch.Tensor, inputs: dict[str, torch.Tensor]
) -> torch.Tensor:
    """The loss of one datum, a scalar to be summed.

    Args:
        p: logprobs of the targets, (n, k), with gradient.
        inputs: float tensors of the same shape.
        config: the loss's numbers, complete.
    """
    if name == "cross_entropy":
        return -(p * inputs["weights"]).sum()
    q, advantages = inputs["logprobs"], inputs["advantages"]
    if name == "dro":
        return -(p * advantages - 0.5 * config["beta"] * (p - q) ** 2).sum()
    log_ratio = p - q
    if name == "gspo":
        inside = inputs["sequence_ratio_mask"] != 0
        log_ratio = log_ratio.detach()[inside].mean() + p - p.detach()
    active = advantages != 0  # elsewhere the ratio, which may overflow, is multiplied by zero
    p, advantages, ratio = p[active], advantages[active], torch.exp(log_ratio[active])
    if name == "importance_sampling":
        return -(ratio * advantages).sum()
    low, high = (
        inputs[key][active] if key in inputs else torch.full_like(ratio, config[key]) for key in CLIP
    )
    clipped = torch.minimum(torch.maximum(ratio, low), high)
    if name == "cispo":
        return -(clipped.detach() * p * advantages).sum()
    return -torch.minimum(ratio * advantages, clipped * advantages).sum()  # ppo, gspo


def needs_gradient(name: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Which tokens (n,) can have a gradient: the others need no backward pass through the vocabulary."""
    if name == "dro":
        return np.ones(len(inputs["advantages"]), bool)
    return (inputs["weights" if name == "cross_entropy" else "advantages"] != 0).any(axis=1)
