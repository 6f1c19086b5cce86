"""Forward and backward passes of a training client: micro-batches of like lengths, gradients that add up."""

from collections.abc import Generator

import numpy as np
import torch

from helpers.stub_tinker.lora import LoraState
from helpers.stub_tinker.losses import Example, datum_loss, needs_gradient
from helpers.stub_tinker.model import Adapters, Model, Packed

# Of a micro-batch: activations take about 1 MB a token at 135M parameters, and more is not faster.
MAX_TOKENS = 1024


def micro_batches(lengths: list[int], max_tokens: int = MAX_TOKENS) -> list[list[int]]:
    """Indices of sequences, shortest first, in runs of up to `max_tokens` tokens or one longer sequence."""
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
    model: Model,
    state: LoraState,
    examples: list[Example],
    loss: str,
    config: dict[str, float],
    forward_only: bool,
) -> Generator[None, None, tuple[list[np.ndarray], dict[str, float]]]:
    """Logprobs of every target, and the summed loss. Gradients add to `state.grad` unless `forward_only`.

    A generator that pauses after each micro-batch, so that others can have their turn.

    Returns:
        One float32 array a datum, (len(targets), k), and metrics by wire name.
    """
    logprobs: list[np.ndarray] = [np.empty((0, 1), np.float32)] * len(examples)
    total = 0.0
    for batch in micro_batches([len(e.tokens) for e in examples]):
        groups = state.frozen_groups(model.dtype) if forward_only else state.training_groups(model.dtype)
        adapters = Adapters(model.dtype, training=True, groups=groups, scale=state.layout.scale)
        chosen = [examples[i] for i in batch]
        with torch.set_grad_enabled(not forward_only):
            packed = Packed([e.tokens for e in chosen], model.device)
            hidden = model.hidden(packed, adapters)
            values = _all_logprobs(model, hidden, chosen, loss, adapters)
            losses = [
                datum_loss(
                    loss,
                    config,
                    p,
                    {key: torch.from_numpy(value).to(model.device) for key, value in example.inputs.items()},
                )
                for p, example in zip(values, chosen, strict=True)
            ]
            summed = torch.stack(losses).sum()
        if summed.requires_grad:
            summed.backward()
        total += float(summed.detach())
        for index, part in zip(batch, values, strict=True):
            logprobs[index] = part.detach().cpu().numpy()
        yield
    return logprobs, {"loss:sum": total}


def _all_logprobs(
    model: Model, hidden: torch.Tensor, examples: list[Example], loss: str, adapters: Adapters
) -> list[torch.Tensor]:
    """Logprobs of the targets of each example, (n, k).

    They have a gradient only where the loss can have one: the backward pass is what costs.
    """
    lengths, width = [len(e.targets) for e in examples], max(e.targets.shape[1] for e in examples)
    targets = np.concatenate([np.pad(e.targets, ((0, 0), (0, width - e.targets.shape[1]))) for e in examples])
    targets = torch.from_numpy(targets).to(hidden.device)
    wanted = np.concatenate([needs_gradient(loss, e.inputs) for e in examples])
    if not hidden.requires_grad or wanted.all():
        values = model.target_logprobs(hidden, targets, adapters)
    else:
        rows = torch.from_numpy(np.flatnonzero(wanted)).to(hidden.device)
        rest = torch.from_numpy(np.flatnonzero(~wanted)).to(hidden.device)
        values = torch.zeros(targets.shape, device=hidden.device)
        values[rest] = model.target_logprobs(hidden.detach()[rest], targets[rest], adapters)
        if len(rows):
            values = values.index_copy(0, rows, model.target_logprobs(hidden[rows], targets[rows], adapters))
    return [part[:, : e.targets.shape[1]] for part, e in zip(values.split(lengths), examples, strict=True)]
