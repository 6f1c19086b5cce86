"""Read a merged model back and compare it with W + (alpha / r)·B·A.

This finds what goes wrong while a model is merged and saved. Merge and check follow one plan, so a misread
adapter doesn't show here. `read_adapter` refuses what it doesn't know, and notebook 05 compares the result
with the server's own model and with PEFT's forward pass.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.errors import ModelError
from helpers.weights.base_model import read_config, torch_dtype, weight_shapes, weight_slices
from helpers.weights.exact_sum import exact_rows, row_blocks

if TYPE_CHECKING:
    import torch
    from tinker_cookbook.weights._merge import MergeOp

OTHER_METHOD = "this architecture needs the other method: memory or shards"


@dataclasses.dataclass
class Comparison:
    """What a merged model's files hold, against the weights that were trained.

    Attributes:
        changed: how many weights the adapter changes.
        rounding: how far rounding to the saved precision moved a number at most.
    """

    changed: int = 0
    rounding: float = 0.0


def compare_with_plan(base: Path, merged: Path, plan: dict[str, list["MergeOp"]], dtype: str) -> Comparison:
    """Read a merged model back, block by block, and compare it with W + (alpha / r)·B·A of the base model.

    Args:
        base: the base model's folder.
        merged: the folder of the merged model.
        plan: what `plan_merge` made for the two.
        dtype: precision of the merged weights.

    Raises:
        ModelError: a weight is missing, was added, isn't finite, or isn't W + (alpha / r)·B·A.
    """
    saved = dict(weight_slices(merged))
    tied = bool(read_config(base).get("tie_word_embeddings"))
    result = Comparison()
    for name, weight in weight_slices(base):
        if name in saved:
            _compare_weight(name, weight, saved[name], plan.get(name, []), dtype, result)
        elif not (tied and name == "lm_head.weight"):
            raise ModelError(f"the merged model lacks {name}", OTHER_METHOD)
    if added := sorted(set(saved) - set(weight_shapes(base))):
        raise ModelError(f"the merged model has {added[0]}, which the base model lacks", OTHER_METHOD)
    return result


def _compare_weight(
    name: str, weight: Any, saved: Any, ops: list["MergeOp"], dtype: str, result: Comparison
) -> None:
    import torch

    precision = torch_dtype(dtype)
    differs = False
    for start, stop in row_blocks(weight.get_shape()):
        exact = exact_rows(weight, start, stop, ops)
        rounded = exact.to(precision).float()
        if not torch.isfinite(rounded).all():
            raise not_finite(f"{name}, in {dtype}")
        _check_close(name, saved[start:stop].float(), exact, precision)
        differs = differs or (bool(ops) and not torch.equal(exact, weight[start:stop].float()))
        result.rounding = max(result.rounding, float((rounded - exact).abs().max()))
    result.changed += differs


def _check_close(name: str, found: "torch.Tensor", exact: "torch.Tensor", precision: "torch.dtype") -> None:
    import torch

    step = torch.finfo(precision).eps
    if not torch.allclose(found, exact, rtol=step, atol=1e-5 * float(exact.abs().max())):
        raise ModelError(
            f"{name} of the merged model is not W + (alpha / r)·B·A: it is up to "
            f"{float((found - exact).abs().max()):.1e} off",
            OTHER_METHOD,
        )


def not_finite(what: str) -> ModelError:
    """The error for merged weights that are infinite or NaN."""
    return ModelError(
        f"the merged weights are not finite: {what}",
        "the training diverged: choose an earlier checkpoint or a smaller learning rate",
    )
