"""Forward and backward passes of a training client: micro-batches of like lengths, gradients that add up."""

import functools
from collections.abc import Callable, Generator

import numpy as np
import torch

from helpers.stub_tinker.kernels import round_up
from helpers.stub_tinker.lora import LoraState
from helpers.stub_tinker.losses import Example, datum_loss, needs_gradient
from helpers.stub_tinker.model import Adapters, Model, Packed

# Of a micro-batch. Activations take 0.5 MB a token at 135M parameters, and what the C library can't use again
# of freed ones half as much. With 1,024 tokens a step is 0 to 4% faster.
MAX_TOKENS = 640
GPU_MAX_TOKENS = 16 * 1024  # where there is memory for it: with 1024, a fast GPU waits for Python
GPU_BYTES_A_TOKEN = 8 << 20  # of the card's memory, which holds much else


def most_tokens(device: torch.device) -> int:
    """Tokens of a micro-batch on this device."""
    if device.type != "cuda":
        return MAX_TOKENS
    memory = torch.cuda.get_device_properties(device).total_memory
    return min(GPU_MAX_TOKENS, max(MAX_TOKENS, memory // GPU_BYTES_A_TOKEN))


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
) -> Generator[int, None, tuple[list[np.ndarray], dict[str, float]]]:
    """Logprobs of every target, and the summed loss. Gradients add to `state.grad` unless `forward_only`.

    A generator that pauses after each micro-batch, so that others can have their turn, and after each layer
    of a sequence that is longer than one. It yields the bytes that it will hold then.

    Returns:
        One float32 array a datum, (len(targets), k), and metrics by wire name.
    """
    logprobs: list[np.ndarray] = [np.empty((0, 1), np.float32)] * len(examples)
    total = 0.0
    most = most_tokens(model.device)
    for batch in micro_batches([len(e.tokens) for e in examples], most):
        groups = state.frozen_groups(model.dtype) if forward_only else state.training_groups(model.dtype)
        adapters = Adapters(model.dtype, training=True, groups=groups, scale=state.layout.scale)
        chosen = [examples[i] for i in batch]
        packed = Packed([e.tokens for e in chosen], model.device)
        loss_of = functools.partial(_summed_loss, loss, config, chosen)
        if packed.size > most:
            values, summed = yield from _in_layers(
                model, packed, adapters, chosen[0], loss, loss_of, not forward_only
            )
        else:
            with torch.set_grad_enabled(not forward_only):
                hidden = model.hidden(packed, adapters)
                values = _all_logprobs(model, hidden, chosen, loss, adapters)
                summed = loss_of(values)
            if summed.requires_grad:
                summed.backward()
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


def _in_layers(
    model: Model,
    packed: Packed,
    adapters: Adapters,
    example: Example,
    loss: str,
    loss_of: Callable[[list[torch.Tensor]], torch.Tensor],
    backward: bool,
) -> Generator[int, None, tuple[list[torch.Tensor], torch.Tensor]]:
    """Logprobs and loss of one long sequence, a layer at a time: a turn for others between layers.

    Only the inputs of layers are kept, 70 kB a token at 135M parameters, and each layer is computed again for
    its backward pass, as are probabilities, `MAX_TOKENS` places at a time.

    Yields:
        The bytes of these inputs.
    """
    layers, inputs = model.config.layers, []
    held = 4 * model.config.hidden * round_up(packed.size, 64) * (layers + 1)
    yield held
    with torch.no_grad():
        x, angles = model.start(packed, adapters)
        for n in range(layers):
            if backward:
                inputs.append(x)
            x = model.layer(n, x, packed, angles, adapters)
            yield held
        hidden = model.end(x, packed, adapters)
        targets = torch.from_numpy(example.targets).to(hidden.device)
        values = model.target_logprobs(hidden, targets, adapters)
    yield held
    values.requires_grad_(backward)
    with torch.set_grad_enabled(backward):
        summed = loss_of([values])
    wanted = np.flatnonzero(needs_gradient(loss, example.inputs))
    if not summed.requires_grad or not len(wanted):
        return [values], summed
    summed.backward()
    assert values.grad is not None
    gradient = torch.zeros_like(hidden)
    for rows in torch.from_numpy(wanted).to(hidden.device).split(MAX_TOKENS):
        head = functools.partial(model.target_logprobs, targets=targets[rows], adapters=adapters)
        gradient[rows] = _pull(head, hidden[rows], values.grad[rows])
        yield held
    gradient = _pull(functools.partial(model.end, batch=packed, adapters=adapters), x, gradient)
    for n in reversed(range(layers)):
        layer = functools.partial(model.layer, n, batch=packed, angles=angles, adapters=adapters)
        gradient = _pull(layer, inputs.pop(), gradient)
        yield held
    return [values], summed


def _pull(
    step: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, gradient: torch.Tensor
) -> torch.Tensor:
    """The gradient of x, from that of step(x)."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        step(x).backward(gradient)
    assert x.grad is not None
    return x.grad


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
