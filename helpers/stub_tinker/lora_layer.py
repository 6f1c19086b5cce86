"""A LoRA layer: the forward pass, s (x Aᵀ) Bᵀ beside a frozen matrix, and its gradients, written by hand.

`LoraLinear` is the layer in training; it adds the gradients of A and B to their buffers itself. `SteadyLora`
is the one in sampling.
"""

from dataclasses import dataclass, field

import torch

from helpers.stub_tinker.kernels import Frozen, RmsNorm, SwiGlu


@dataclass
class LoraGroup:
    """LoRA factors of one fused matrix, in compute precision, with the float32 buffers their gradients go to.

    `a` is (n·r, in) for the n modules of the group; `b[i]` is (out_i, r).
    """

    a: torch.Tensor
    b: list[torch.Tensor]
    grad_a: torch.Tensor | None = None
    grad_b: list[torch.Tensor] = field(default_factory=list)

    def delta(self, x: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        """s (x Aᵀ) Bᵀ, (rows, out), and s (x Aᵀ), (rows, n·r)."""
        h = x @ self.a.T
        if scale != 1:
            h.mul_(scale)
        rank = self.b[0].shape[1]
        parts = [h[:, i * rank : (i + 1) * rank] @ b.T for i, b in enumerate(self.b)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)), h


class SteadyLora:
    """A `LoraGroup` for sampling: one (out, n·r) matrix for all modules, zero where a module has no part,
    since with few rows the number of products counts and not their size. Both are `Frozen`, and a row's delta
    does not depend on the other rows.
    """

    def __init__(self, group: LoraGroup):
        self._a, self._b = Frozen(group.a), Frozen(torch.block_diag(*group.b))

    def delta(self, x: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        """As `LoraGroup.delta`."""
        h = self._a.steady(x)
        if scale != 1:
            h.mul_(scale)
        return self._b.steady(h), h


class LoraLinear(torch.autograd.Function):
    """y = f(x) Wᵀ + s (f(x) Aᵀ) Bᵀ, where f is the step before, if any. Backward returns dx, and adds dA and
    dB to the group's own buffers. It computes f(x) again, which would be a quarter of what a pass keeps.
    """

    @staticmethod
    def forward(
        ctx, x, before: RmsNorm | SwiGlu | None, frozen: Frozen, lora: LoraGroup | None, scale: float
    ):
        ctx.before, ctx.frozen, ctx.lora, ctx.scale = before, frozen, lora, scale
        inner = before(x) if before else x
        delta, h = lora.delta(inner, scale) if lora else (None, None)
        ctx.save_for_backward(x if before or lora else None, h)
        return frozen(inner, delta)

    @staticmethod
    def backward(ctx, *grads):
        (grad,) = grads
        (x, h), delta = ctx.saved_tensors, None
        inner, kept = ctx.before.again(x) if ctx.before else (x, ())
        if ctx.lora is not None:
            delta = LoraLinear._pull_lora(ctx.lora, ctx.scale, inner, h, grad)
        grad = ctx.frozen.pull(grad, delta)
        return (ctx.before.pull(grad, *kept) if ctx.before else grad), None, None, None, None

    @staticmethod
    def _pull_lora(lora: LoraGroup, scale: float, x, h, grad) -> torch.Tensor:
        """Adds to the buffers of A and B; returns the part of dx that comes through them."""
        rank, start = lora.b[0].shape[1], 0
        grad_h = torch.empty_like(h)
        for i, b in enumerate(lora.b):
            part, columns = grad[:, start : start + len(b)], slice(i * rank, (i + 1) * rank)
            lora.grad_b[i] += part.T @ h[:, columns]
            torch.mm(part, b, out=grad_h[:, columns])
            start += len(b)
        grad_h.mul_(scale)
        lora.grad_a += grad_h.T @ x
        return grad_h @ lora.a
