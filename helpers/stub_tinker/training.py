"""forward and forward_backward of one training client: micro-batches of like lengths, gradients that accumulate."""

import numpy as np
import torch

from helpers.stub_tinker.lora import LoraState
from helpers.stub_tinker.losses import Example, needs_gradient, token_loss
from helpers.stub_tinker.model import Adapters, Model, Packed

MAX_TOKENS = 1024  # of a micro-batch: activations take about 1 MB a token at 135M parameters; more is not faster


def micro_batches(lengths: list[int], max_tokens: int = MAX_TOKENS) -> list[list[int]]:
    """Indices of sequences, shortest first, in runs of at most `max_tokens` tokens (or one longer sequence)."""
    batches: list[list[int]] = []
    used = 0
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if not batches or used + lengths[index] > max_tokens:
            batches.append([])
            used = 0
        batches[-1].append(index)
        used += lengths[index]
    return batches


def forward_backward(
    model: Model, state: LoraState, examples: list[Example], loss: str, config: dict[str, float], forward_only: bool
) -> tuple[list[np.ndarray], dict[str, float]]:
    """Logprobs of every target, and the loss summed; unless `forward_only`, gradients are added to `state.grad`.

    Returns:
        One float32 array a datum, (len(targets),), and metrics by wire name.
    """
    groups = state.training_groups(model.dtype)
    adapters = Adapters(model.dtype, training=True, groups=groups, scale=state.layout.scale)
    logprobs: list[np.ndarray] = [np.empty(0, np.float32)] * len(examples)
    total = 0.0
    for batch in micro_batches([len(e.tokens) for e in examples]):
        chosen = [examples[i] for i in batch]
        with torch.set_grad_enabled(not forward_only):
            packed = Packed([e.tokens for e in chosen], model.device)
            hidden = model.hidden(packed, adapters)
            targets = torch.from_numpy(np.concatenate([e.targets for e in chosen])).to(model.device)
            inputs = {
                key: torch.from_numpy(np.concatenate([e.inputs[key] for e in chosen])).to(model.device)
                for key in chosen[0].inputs
            }
            values = _all_logprobs(model, hidden, targets, np.concatenate([needs_gradient(loss, e.inputs) for e in chosen]))
            summed = token_loss(loss, config, values, inputs).sum()
        if not forward_only:
            summed.backward()
        total += float(summed.detach())
        for index, part in zip(batch, values.detach().cpu().split(packed.lengths)):
            logprobs[index] = part.numpy()
    return logprobs, {"loss:sum": total}


def _all_logprobs(model: Model, hidden: torch.Tensor, targets: torch.Tensor, wanted: np.ndarray) -> torch.Tensor:
    """Logprob of each target (rows,), with a gradient only where `wanted`, which is where the cost is."""
    if not hidden.requires_grad or wanted.all():
        return model.target_logprobs(hidden, targets)
    rows = torch.from_numpy(np.flatnonzero(wanted)).to(hidden.device)
    rest = torch.from_numpy(np.flatnonzero(~wanted)).to(hidden.device)
    values = torch.zeros(len(targets), device=hidden.device)
    values[rest] = model.target_logprobs(hidden.detach()[rest], targets[rest])
    return values.index_copy(0, rows, model.target_logprobs(hidden[rows], targets[rows]))
