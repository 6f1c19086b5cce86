"""The sum of a merge: a trained weight is W + (alpha / r)·B·A, some rows at a time, in float32."""

import dataclasses
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinker_cookbook.weights._merge import MergeOp
    from torch import Tensor

BLOCK = 1 << 22  # numbers worked on at once: 16 MiB in float32


def row_blocks(shape: Iterable[int]) -> list[tuple[int, int]]:
    """A weight's rows (or experts) in runs of about `BLOCK` numbers: `[(start, stop)]`."""
    count, *rest = shape
    step = max(1, BLOCK // max(1, math.prod(rest)))
    return [(start, min(start + step, count)) for start in range(0, count, step)]


def exact_rows(weight: Any, start: int, stop: int, ops: Iterable["MergeOp"]) -> "Tensor":
    """Rows (or experts) `start` to `stop` of a trained weight: W + (alpha / r)·B·A in float32.

    Args:
        weight: the base model's, a tensor or a safetensors slice.
        start: the first row.
        stop: the row after the last.
        ops: what the plan has for this weight.
    """
    rows = weight[start:stop].float()
    for op in ops:
        _add_rows(rows, start, op)
    return rows


def _add_rows(rows: "Tensor", start: int, op: "MergeOp") -> None:
    """Add to `rows`, which begin at row `start` of a weight, their share of the operation `op`."""
    from tinker_cookbook.weights._merge import apply_merge_op

    first = op.slice_start or 0
    low, high = max(start, first), min(start + len(rows), first + len(op.lora_B))
    if low < high:
        mine = slice(low - first, high - first)
        a = op.lora_A[mine] if op.is_expert_3d else op.lora_A
        part = dataclasses.replace(op, slice_start=None, lora_A=a, lora_B=op.lora_B[mine])
        apply_merge_op({op.target_key: rows[low - start : high - start]}, part)
