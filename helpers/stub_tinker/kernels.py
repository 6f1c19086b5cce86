"""The pieces of the forward and backward pass: products with frozen matrices, norms, attention, and the
loss's logprobs. Each autograd node here keeps only what its backward needs.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from helpers.stub_tinker.steady import Steady, by_rows, in_sizes, trial_operands

PIECE = 64  # tokens of a prompt whose attention is computed at once
STEP = 16  # positions by which lengths are rounded for attention


def round_up(number: int, multiple: int) -> int:
    """oneDNN keeps 0.7 MB for each new shape of a product, so shapes are rounded to few values."""
    return -(-number // multiple) * multiple


def rows_for(tokens: int) -> int:
    """Rows of a pass with so many tokens; those of most micro-batches are more than 512."""
    return round_up(tokens, 64 if tokens <= 512 else STEP)


class Frozen:
    """A frozen matrix (out, in), perhaps several stacked, which end at `splits`, with a bias or None.

    In bfloat16 on a CPU it is kept in oneDNN's own layout: a product with few rows takes half the time, since
    oneDNN would otherwise lay it out anew for each, and the numbers are the same. The layout for the backward
    pass is made at its first.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        splits: tuple[int, ...] = (),
        keep_plain: bool = False,
    ):
        self.bias, self.splits, self.dtype, self.shape = bias, splits, weight.dtype, weight.shape
        packs = (
            weight.dtype == torch.bfloat16
            and weight.device.type == "cpu"
            and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        )
        self._packed: Any = torch.ops.mkldnn._reorder_linear_weight(weight) if packs else None
        self._plain: Any = None if packs and not keep_plain else weight
        self._packed_back: torch.Tensor | None = None
        self._device = weight.device

    def plain(self, dtype: torch.dtype) -> torch.Tensor:
        """The matrix as an ordinary tensor."""
        return (self._packed.to_dense() if self._plain is None else self._plain).to(dtype)

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        """Rows of a matrix that was made with `keep_plain`."""
        return self._plain[indices]

    def __call__(self, x: torch.Tensor, delta: torch.Tensor | None = None) -> torch.Tensor:
        """x Wᵀ + bias + delta, for x (rows, in) of any precision."""
        return self._product(x.dtype)(x, delta)

    def steady(self, x: torch.Tensor, delta: torch.Tensor | None = None) -> torch.Tensor:
        """As a call, but a row's bits don't depend on the other rows: see `steady.py`."""
        bare, summed = self._trials(x.dtype)
        if delta is None and not bare.usable:
            delta = x.new_zeros(len(x), self.shape[0])
        sizes = (bare if delta is None else summed).sizes(len(x))
        if sizes == (len(x),):
            return self(x, delta)
        product = self._product(x.dtype)
        if delta is None:
            return in_sizes(lambda rows: product(rows, None), sizes, x)
        return in_sizes(product, sizes, x, delta)

    def rows_for(self, rows: int, dtype: torch.dtype) -> int:
        """Rows, with filler, that `steady` takes for `rows` of them."""
        bare, summed = self._trials(dtype)
        return sum((bare if bare.usable else summed).sizes(rows))

    def _trials(self, dtype: torch.dtype) -> tuple[Steady, Steady]:
        return linear_trials(*self.shape, dtype, self._device, self.bias is not None, torch.get_num_threads())

    def _product(self, dtype: torch.dtype) -> Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]:
        """The product for x of a precision."""
        bias = None if self.bias is None else self.bias.to(dtype)
        if dtype == self.dtype and self._packed is not None:
            return lambda x, delta: _packed_product(x, self._packed, bias, delta)
        weight = self.plain(dtype)
        return lambda x, delta: _plain_product(x, weight, bias, delta)

    def pull(self, grad: torch.Tensor, delta: torch.Tensor | None = None) -> torch.Tensor:
        """grad W + delta, for grad (rows, out): the backward pass."""
        if self._packed is None:
            weight = self.plain(grad.dtype)
            return grad @ weight if delta is None else torch.addmm(delta, grad, weight)
        if self._packed_back is None:
            self._packed_back = torch.ops.mkldnn._reorder_linear_weight(self.plain(self.dtype).T.contiguous())
        return _packed_product(grad, self._packed_back, None, delta)


def _packed_product(x, weight, bias, delta):
    """The delta is added to the float32 sums, before they are rounded. Added to rounded sums, what a LoRA has
    learned in its first steps is mostly smaller than half a digit of bfloat16, and half of it is lost.
    """
    if delta is None:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return torch.ops.mkldnn._linear_pointwise.binary(x, delta, weight, bias, "add")


def _plain_product(x, weight, bias, delta):
    if delta is None:
        return F.linear(x, weight, bias)
    return torch.addmm(delta if bias is None else delta + bias, x, weight.T)


@functools.cache
def linear_trials(
    width: int, depth: int, dtype: torch.dtype, device: torch.device, biased: bool, threads: int
) -> tuple[Steady, Steady]:
    """The numbers of rows for products without a delta and with one, where a delta of zero changes no bit."""

    @torch.inference_mode()
    def run(rows: int, with_delta: bool) -> torch.Tensor:
        row, matrix = trial_operands(width, depth, dtype, device)
        frozen = Frozen(matrix, matrix.new_zeros(width) if biased else None)
        delta = row.new_zeros(rows, width) if with_delta else None
        return frozen(row.expand(rows, depth).contiguous(), delta)

    summed = Steady(lambda rows: run(rows, True))
    return Steady(lambda rows: run(rows, False), like=summed), summed


class RmsNorm:
    """Root mean square norm over the last dimension, computed in float32, in the weight's precision."""

    def __init__(self, weight: torch.Tensor, eps: float):
        self._weight, self._eps = weight, eps

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self._inverse = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self._eps)
        return (x * self._inverse).to(self._weight.dtype) * self._weight

    def again(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple]:
        """The result once more, and what `pull` takes."""
        normed = x * self._inverse
        return normed.to(self._weight.dtype) * self._weight, (normed, x.dtype)

    def pull(self, grad: torch.Tensor, normed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        grad = (grad * self._weight).float()
        return (grad - normed * (grad * normed).mean(-1, keepdim=True)).mul_(self._inverse).to(dtype)


class SwiGlu:
    """silu(gate) · up of the fused (tokens, 2·intermediate) input."""

    def __call__(self, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return by_rows(F.silu, gate).mul_(up)

    def again(self, gate_up: torch.Tensor) -> tuple[torch.Tensor, tuple]:
        """The result once more, and what `pull` takes."""
        gate, up = gate_up.chunk(2, dim=-1)
        silu = F.silu(gate)
        return silu * up, (gate, up, silu)

    def pull(
        self, grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, silu: torch.Tensor
    ) -> torch.Tensor:
        out = grad.new_empty(len(grad), 2 * grad.shape[1])
        to_gate, to_up = out.chunk(2, dim=-1)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=to_gate)
        torch.mul(grad, silu, out=to_up)
        return out


class Before(torch.autograd.Function):
    """`RmsNorm` or `SwiGlu` by itself; keeps only its input."""

    @staticmethod
    def forward(ctx, x, step: RmsNorm | SwiGlu):
        ctx.save_for_backward(x)
        ctx.step = step
        return step(x)

    @staticmethod
    def backward(ctx, *grads):
        return ctx.step.pull(grads[0], *ctx.step.again(*ctx.saved_tensors)[1]), None


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding of (tokens, heads, dim); cos and sin are (tokens, 1, dim), sin negative in
    the first half.
    """
    return by_rows(lambda x, c, s: (x * c).addcmul_(x.roll(x.shape[-1] // 2, -1), s), x, cos, sin)


class Rotate(torch.autograd.Function):
    """`rotate`; its backward is the rotation back."""

    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.angles = cos, sin
        return rotate(x, cos, sin)

    @staticmethod
    def backward(ctx, *grads):
        (grad,) = grads
        cos, sin = ctx.angles
        return rotate(grad, cos, -sin), None, None


class Spread(torch.autograd.Function):
    """(n, …) rows at n places of a larger tensor of zeros. PyTorch's own `index_copy` would keep the rows."""

    @staticmethod
    def forward(ctx, rows, places, size: int):
        ctx.places = places
        return rows.new_zeros(size, *rows.shape[1:]).index_copy_(0, places, rows)

    @staticmethod
    def backward(ctx, *grads):
        return grads[0].index_select(0, ctx.places), None, None


class Gather(torch.autograd.Function):
    """The rows at some places: the way back from `Spread`."""

    @staticmethod
    def forward(ctx, grid, places):
        ctx.places, ctx.size = places, len(grid)
        return grid.index_select(0, places)

    @staticmethod
    def backward(ctx, *grads):
        return Spread.apply(grads[0], ctx.places, ctx.size), None


class Copies(torch.autograd.Function):
    """Rows at places of which some occur more than once. Gradients add up in float32."""

    @staticmethod
    def forward(ctx, rows, places):
        ctx.places, ctx.size = places, len(rows)
        return rows.index_select(0, places)

    @staticmethod
    def backward(ctx, *grads):
        (grad,) = grads
        summed = grad.new_zeros(ctx.size, *grad.shape[1:], dtype=torch.float32)
        return summed.index_add_(0, ctx.places, grad.float()).to(grad.dtype), None


def causal_mask(length: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """(length, length): 0 where a query may look, -inf beyond."""
    return torch.full((length, length), -torch.inf, device=device, dtype=dtype).triu_(1)


def causal_weights(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """softmax(q kᵀ / √dim) with a causal mask: (n, kv_heads, group·length, length) for q (n, kv_heads,
    group·length, dim).
    """
    scores = q @ (k * k.shape[3] ** -0.5).transpose(-1, -2)
    mask = causal_mask(k.shape[2], q.dtype, q.device).repeat(q.shape[2] // k.shape[2], 1)
    return torch.softmax(scores.add_(mask), dim=-1)


class Attention(torch.autograd.Function):
    """Causal attention of short sequences, for which plain matrix products beat PyTorch's fused kernel.

    q is (n, kv_heads, group·length, dim), with the queries that share a key head one after the other; k and v
    are (n, kv_heads, length, dim).
    """

    @staticmethod
    def forward(ctx, q, k, v):
        weights = causal_weights(q, k)
        ctx.save_for_backward(q, k, v, weights)
        return weights @ v

    @staticmethod
    def backward(ctx, *grads):
        (grad,) = grads
        q, k, v, weights = ctx.saved_tensors
        grad_scores = torch.ops.aten._softmax_backward_data(
            grad @ v.transpose(-1, -2), weights, -1, weights.dtype
        )
        grad_scores = grad_scores.mul_(k.shape[3] ** -0.5)
        return grad_scores @ k, grad_scores.transpose(-1, -2) @ q, weights.transpose(-1, -2) @ grad


def logprobs_of(logits: torch.Tensor, targets: torch.Tensor, result: torch.Tensor, keep: bool) -> None:
    """Write log softmax(logits)[targets], (rows, k), to `result`, and to `logits`, if `keep`, the
    probabilities.
    """
    top = logits.amax(-1, keepdim=True)
    at_targets = logits.gather(1, targets).float().sub_(top)
    exponentials = logits.float().sub_(top).exp_()
    total = exponentials.sum(-1, keepdim=True)
    result.copy_(at_targets.sub_(total.log()))
    if keep:
        logits.copy_(exponentials.mul_(total.reciprocal_()))


def log_softmax(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """That of each row's targets, (rows, k), from (rows, vocab) float32."""
    parts = zip(logits.split(TargetLogprob.IN_CACHE), targets.split(TargetLogprob.IN_CACHE), strict=True)
    return torch.cat([torch.log_softmax(part, dim=-1).gather(1, wanted) for part, wanted in parts])


class TargetLogprob(torch.autograd.Function):
    """log softmax(h Wᵀ + s (h Aᵀ) Bᵀ)[targets] a row, in slices of rows; keeps the probabilities in compute
    precision.

    `hidden` is (rows, hidden) and `targets` (rows, k), as is the result, in float32. `lora` may be None; its
    gradients are added to its own buffers.
    """

    SLICE = 128  # rows of one product
    IN_CACHE = 16  # rows of one softmax on a CPU: a whole slice in float32 would not stay in the cache

    @staticmethod
    def forward(ctx, hidden, output: Frozen, targets, lora, scale):
        asked = len(targets)
        filler = round_up(asked, STEP) - asked
        hidden, targets = F.pad(hidden, (0, 0, 0, filler)), F.pad(targets, (0, 0, 0, filler))
        result = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
        kept, keep = [], ctx.needs_input_grad[0]
        h: Any = None if lora is None else (hidden @ lora.a.T).mul_(scale)
        few = TargetLogprob.IN_CACHE if hidden.device.type == "cpu" else TargetLogprob.SLICE
        for start in range(0, len(targets), TargetLogprob.SLICE):
            rows = slice(start, start + TargetLogprob.SLICE)
            logits = output(hidden[rows], None if lora is None else h[rows] @ lora.b[0].T)
            parts = zip(logits.split(few), targets[rows].split(few), result[rows].split(few), strict=True)
            for part, wanted, into in parts:
                logprobs_of(part, wanted, into, keep)
            if keep:
                kept.append(logits)
        ctx.save_for_backward(hidden, targets, h, *kept)
        ctx.output, ctx.lora, ctx.scale = output, lora, scale
        return result[:asked]

    @staticmethod
    def backward(ctx, *grads):
        (grad,) = grads
        hidden, targets, h, *kept = ctx.saved_tensors
        output, lora, asked = ctx.output, ctx.lora, len(grad)
        grad = F.pad(grad, (0, 0, 0, len(targets) - asked)).to(hidden.dtype)
        # The gradient of the logits is grad at the targets, less total · probabilities.
        total = grad.sum(1, keepdim=True)
        result = torch.empty_like(hidden)
        grad_h: Any = None
        if lora is not None:
            grad_h = torch.empty_like(h)
            for k in range(targets.shape[1]):
                lora.grad_b[0].index_add_(0, targets[:, k], (grad[:, k : k + 1] * h).float())
        for i, probabilities in enumerate(kept):
            rows = slice(i * TargetLogprob.SLICE, (i + 1) * TargetLogprob.SLICE)
            at_targets = torch.bmm(grad[rows, None], output.rows(targets[rows]))[:, 0]
            result[rows] = output.pull(probabilities.mul_(-total[rows]), at_targets)
            if lora is not None:
                lora.grad_b[0] += probabilities.T @ h[rows]
                at_targets = torch.bmm(grad[rows, None], lora.b[0][targets[rows]])[:, 0]
                grad_h[rows] = at_targets.add_(probabilities @ lora.b[0])
        if lora is not None:
            grad_h.mul_(ctx.scale)
            lora.grad_a += grad_h.T @ hidden
            result.addmm_(grad_h, lora.a)
        return result[:asked], None, None, None, None
