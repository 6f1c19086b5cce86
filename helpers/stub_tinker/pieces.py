"""The attention of prompts, a piece at a time, so that what was read can be kept: see `prefixes.py`."""

import functools

import torch

from helpers.stub_tinker.kernels import PIECE, causal_mask
from helpers.stub_tinker.steady import batched

piece_mask = functools.cache(functools.partial(causal_mask, PIECE))


def attend_in_pieces(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Causal attention of the last positions of prompts with the same length, `PIECE` of them at a time. The
    numbers of a piece depend on what is up to its end, and on nothing else, the other prompts included.

    Args:
        q: (prompts, rows, heads, dim), from the beginning of a piece to the end of the prompts; rows are a
            multiple of `STEP`.
        keys: (prompts, kv_heads, positions, dim), times 1/√dim: of the whole prompts.
        values: the same.

    Returns:
        (prompts, rows, heads·dim)
    """
    prompts, rows, heads, dim = q.shape
    kv_heads, q = keys.shape[1], q.transpose(1, 2)
    keys, values = keys.flatten(0, 1), values.flatten(0, 1)
    before, parts, mask = keys.shape[1] - rows, [], piece_mask(q.dtype, q.device)
    for part in q.split(PIECE, dim=2):
        count = part.shape[2]
        before += count
        part = part.reshape(prompts * kv_heads, -1, dim).contiguous()
        # Both contiguous, or a piece's layout, and so its kernel, would depend on what comes after it.
        known_keys, known_values = keys[:, :before].contiguous(), values[:, :before].contiguous()
        scores = _apart(part, known_keys.transpose(1, 2), kv_heads, True)
        scores.view(prompts, heads, count, before)[..., -count:].add_(mask[:count, :count])
        attended = _apart(torch.softmax(scores, dim=-1), known_values, kv_heads, False)
        parts.append(attended.view(prompts, heads, count, dim).transpose(1, 2).flatten(2))
    return torch.cat(parts, dim=1)


def _apart(a: torch.Tensor, b: torch.Tensor, each: int, transposed: bool) -> torch.Tensor:
    """Of (slots·each, m, k) and (slots·each, k, n), the product that each slot has alone."""
    if len(a) == each:
        return torch.bmm(a, b)
    where = a.dtype, a.device, torch.get_num_threads()
    trial = batched(each, *a.shape[1:], b.shape[2], transposed, *where, alone=True)
    parts = [size * each for size in trial.sizes(len(a) // each)]
    if len(parts) == 1:
        return torch.bmm(a, b)
    return torch.cat([torch.bmm(x, y) for x, y in zip(a.split(parts), b.split(parts), strict=True)])
