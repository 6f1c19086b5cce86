"""Forward and backward passes of a training client: micro-batches, and gradients that add up."""

import functools
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np
import torch

from helpers.stub_tinker.kernels import TargetLogprob, round_up
from helpers.stub_tinker.lora import LoraState
from helpers.stub_tinker.losses import Example, datum_loss, needs_gradient
from helpers.stub_tinker.model import Adapters, Model
from helpers.stub_tinker.packing import Packed, micro_batches

# Of a micro-batch. Activations take 0.5 MB a token at 135M parameters, and what the C library can't use again
# of freed ones half as much. With 1,024 tokens a step is 0 to 4% faster.
MAX_TOKENS = 640
GPU_MAX_TOKENS = 16 * 1024  # where there is memory for it: with 1024, a fast GPU waits for Python
GPU_BYTES_A_TOKEN = 8 << 20  # of the card's memory, which holds much else


Pull = Callable[[torch.Tensor], torch.Tensor]  # the gradient of a step's input from that of its result


def most_tokens(device: torch.device) -> int:
    """Tokens of a micro-batch on this device."""
    if device.type != "cuda":
        return MAX_TOKENS
    memory = torch.cuda.get_device_properties(device).total_memory
    return min(GPU_MAX_TOKENS, max(MAX_TOKENS, memory // GPU_BYTES_A_TOKEN))


def forward_backward(
    model: Model,
    state: LoraState,
    examples: list[Example],
    loss: str,
    config: dict[str, float],
    forward_only: bool,
) -> Generator[int, None, tuple[list[np.ndarray], dict[str, float]]]:
    """Logprobs of every target, and the summed loss. Gradients add to `state.grad` unless `forward_only`.

    A generator that pauses within each micro-batch, after each layer and each piece of the output layer, so
    that others can have their turn. It yields the bytes that it will hold then.

    Returns:
        One float32 array a datum, (len(targets), k), and metrics by wire name.
    """
    logprobs: list[np.ndarray] = [np.empty((0, 1), np.float32)] * len(examples)
    total = 0.0
    for batch, families in micro_batches([e.tokens for e in examples], most_tokens(model.device)):
        groups = state.frozen_groups(model.dtype) if forward_only else state.training_groups(model.dtype)
        adapters = Adapters(model.dtype, training=True, groups=groups, scale=state.layout.scale)
        chosen = [examples[i] for i in batch]
        packed = Packed([e.tokens for e in chosen], model.device, families=families)
        values, summed = yield from _pass(
            model,
            packed,
            adapters,
            chosen,
            functools.partial(_summed_loss, loss, config, chosen),
            _wanted(loss, chosen, forward_only),
        )
        total += float(summed.detach())
        for index, part in zip(batch, values, strict=True):
            logprobs[index] = part.detach().cpu().numpy()
        yield 0
    return logprobs, {"loss:sum": total}


def _summed_loss(
    loss: str, config: dict[str, float], examples: list[Example], values: list[torch.Tensor]
) -> torch.Tensor:
    """The loss of examples with these logprobs of their targets, (n, k) each."""
    losses = [
        datum_loss(
            loss,
            config,
            p,
            {key: torch.from_numpy(value).to(p.device) for key, value in example.inputs.items()},
        )
        for p, example in zip(values, examples, strict=True)
    ]
    return torch.stack(losses).sum()


def _wanted(loss: str, examples: list[Example], forward_only: bool) -> np.ndarray:
    """Which rows can have a gradient: the backward pass through the vocabulary is what costs."""
    return np.concatenate([needs_gradient(loss, e.inputs) & (not forward_only) for e in examples])


def _pass(
    model: Model,
    packed: Packed,
    adapters: Adapters,
    examples: list[Example],
    loss_of: Callable[[list[torch.Tensor]], torch.Tensor],
    wanted: np.ndarray,
) -> Generator[int, None, tuple[list[torch.Tensor], torch.Tensor]]:
    """Logprobs and loss of a micro-batch, a layer at a time: a turn for others between layers.

    Of a sequence that is longer than a micro-batch only the inputs of layers are kept, 70 kB a token at 135M
    parameters, and each layer is computed again for its backward pass.

    Args:
        wanted: (tokens,), the rows that have a gradient; without any there is no backward pass.

    Yields:
        About the bytes of what is kept.
    """
    most, backward = most_tokens(model.device), bool(wanted.any())
    keep = backward and packed.size <= most
    held = _kept_bytes(model, packed, keep)
    pulls: list[Pull] = []

    def run(step: Callable[..., torch.Tensor], x: torch.Tensor, **more: Any) -> torch.Tensor:
        y, pull = _step(functools.partial(step, batch=packed, adapters=adapters, **more), x, keep)
        if backward:
            pulls.append(pull)
        return y

    yield held
    x, angles = model.start(packed, adapters)
    for n in range(model.config.layers):
        x = run(functools.partial(model.layer, n), x, angles=angles)
        yield held
    hidden = run(model.end, x)
    targets = _targets(examples)
    first, of_token = packed.distinct(targets)
    gradients = np.zeros(len(first), bool)
    np.logical_or.at(gradients, of_token, wanted)
    at, targets = packed.places[first], torch.from_numpy(targets[first]).to(hidden.device)
    values, heads = torch.zeros(targets.shape, device=hidden.device), []
    for part, has_gradient in _pieces(gradients, round_up(most // 8, TargetLogprob.SLICE)):
        part = part.to(hidden.device)
        head = functools.partial(model.target_logprobs, targets=targets[part], adapters=adapters)
        values[part], pull = _step(head, hidden[at[part]], keep and has_gradient)
        if has_gradient:
            heads.append((part, at[part], pull))
        yield held
    values.requires_grad_(backward)
    of_examples = values[of_token].split([len(e.targets) for e in examples])
    parts = [v[:, : e.targets.shape[1]] for v, e in zip(of_examples, examples, strict=True)]
    summed = loss_of(parts)
    if summed.requires_grad:
        summed.backward()
        for _ in _back(values.grad, hidden, heads, pulls):
            yield held
    return parts, summed


def _back(
    of_values: torch.Tensor | None,
    hidden: torch.Tensor,
    heads: list[tuple[torch.Tensor, torch.Tensor, Pull]],
    pulls: list[Pull],
) -> Iterator[None]:
    """The backward pass, a piece of the output layer and then a layer at a time. Empties the lists.

    Args:
        of_values: the gradient of the logprobs.
        hidden: the final hidden states.
        heads: values of a piece of the output layer, their rows, and what makes the gradient of those.
        pulls: the same of each layer, first to last.
    """
    assert of_values is not None
    of_hidden = torch.zeros_like(hidden, dtype=torch.float32)
    while heads:
        part, rows, pull = heads.pop()
        of_hidden.index_add_(0, rows, pull(of_values[part]).float())
        yield
    gradient = of_hidden.to(hidden.dtype)
    while pulls:
        gradient = pulls.pop()(gradient)
        yield


def _step(
    step: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, keep: bool
) -> tuple[torch.Tensor, Pull]:
    """step(x), and what makes the gradient of x from that of the result: from what autograd kept, or else by
    doing the step again.
    """
    if not keep:
        with torch.no_grad():
            return step(x), lambda gradient: _step(step, x, True)[1](gradient)
    x = x.detach().requires_grad_()
    y = step(x)

    def pull(gradient: torch.Tensor) -> torch.Tensor:
        y.backward(gradient)
        assert x.grad is not None
        return x.grad

    return y.detach(), pull


def _kept_bytes(model: Model, packed: Packed, keep: bool) -> int:
    """About what a pass holds: inputs of layers, or of each step of a layer, and the probabilities."""
    c, size = model.config, model.dtype.itemsize
    row, place = 4 * c.hidden * (c.layers + 1), 0
    if keep:
        place = c.layers * size * (2 * (c.heads + c.kv_heads) * c.head_dim + c.heads * packed.longest)
        row += c.layers * (4 * c.hidden + size * 2 * c.intermediate) + size * c.vocab
    return round_up(packed.size, 64) * row + packed.count * packed.longest * place


def _targets(examples: list[Example]) -> np.ndarray:
    """Targets of all examples, (tokens, most a token); zeros where an example has fewer."""
    width = max(e.targets.shape[1] for e in examples)
    padded = [np.pad(e.targets, ((0, 0), (0, width - e.targets.shape[1]))) for e in examples]
    return np.concatenate(padded)


def _pieces(wanted: np.ndarray, size: int) -> Iterator[tuple[torch.Tensor, bool]]:
    """Up to `size` rows at a time, first those that have no gradient, and whether they have one."""
    for has_gradient in (False, True):
        rows = torch.from_numpy(np.flatnonzero(wanted == has_gradient))
        for start in range(0, len(rows), size):
            yield rows[start : start + size], has_gradient
