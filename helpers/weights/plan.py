"""Which factors of an adapter change which weight of a base model, and whether the two belong together.

The plan is the cookbook's: `plan_merge_ops` knows each architecture's names, fused projections and experts.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from helpers.errors import ModelError
from helpers.weights.adapter import read_adapter, trains_output_layer
from helpers.weights.base_model import cause, is_tied, read_config, weight_shapes

if TYPE_CHECKING:
    from tinker_cookbook.weights._merge import MergeOp


def plan_merge(base: str | Path, adapter_folder: str | Path) -> dict[str, list["MergeOp"]]:
    """Which factors change which weight, as the cookbook sees it for this architecture.

    Returns:
        `{weight name: [MergeOp]}`.

    Raises:
        ModelError: as `read_adapter`, or the adapter doesn't fit this base model.
    """
    from tinker_cookbook.exceptions import WeightsMergeError
    from tinker_cookbook.weights._merge import detect_merge_profile, plan_merge_ops, validate_merge_op_shapes

    adapter = read_adapter(adapter_folder)
    # The cookbook knows one scale for all: each B gets its own here, and the cookbook is told 1.
    tensors = {}
    for module, (a, b) in adapter.pairs.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b.float() * adapter.config.scale_of(module)
    shapes = weight_shapes(base)
    try:
        profile = detect_merge_profile(read_config(base), set(shapes))
        plan = plan_merge_ops(tensors, {"r": 1, "lora_alpha": 1}, set(shapes), profile)
        validate_merge_op_shapes(plan, shapes)
    except (WeightsMergeError, ValueError, KeyError, IndexError) as error:
        example = next((name for name in sorted(shapes) if name.endswith("q_proj.weight")), min(shapes))
        why = f"{cause(error)} (the base model's weights have names such as {example})"
        raise _does_not_fit(base, adapter_folder, why) from error
    _check_once(base, adapter_folder, plan)
    if changed := [name for name in plan if name.endswith("embed_tokens.weight")]:
        raise _does_not_fit(
            base, adapter_folder, f"it changes the input embedding {changed[0]}, which Tinker does not train"
        )
    return plan


def _does_not_fit(base: str | Path, adapter_folder: str | Path, why: str) -> ModelError:
    return ModelError(
        f"the adapter in {adapter_folder} was not trained on {base}: {why}",
        "use the base model that the run's manifest names, or the right checkpoint",
    )


def _check_once(base: str | Path, adapter_folder: str | Path, plan: dict[str, list["MergeOp"]]) -> None:
    """Two names may stand for one weight: `unembed_tokens` and `lm_head`. The two changes would add up."""
    for name, ops in plan.items():
        if len({(op.slice_start, op.fused_proj_idx) for op in ops}) < len(ops):
            raise _does_not_fit(base, adapter_folder, f"it changes {name} twice, under two names")


def check_adapter_fits(base: str | Path, adapter_folder: str | Path) -> None:
    """Check that each pair of factors has a weight of its shape in the base model, and that the adapter has a
    PEFT form.

    Raises:
        ModelError: as `plan_merge` and `check_output_layer`.
    """
    check_output_layer(base, adapter_folder)
    plan_merge(base, adapter_folder)


def check_output_layer(base: str | Path, adapter_folder: str | Path) -> None:
    """Check that the adapter leaves the output layer alone where it is the input embedding too: beside the
    base model both would change. `merge_adapter` gives the output layer a weight of its own.

    Raises:
        ModelError: it does not.
    """
    if trains_output_layer(adapter_folder) and is_tied(base):
        raise ModelError(
            f"the adapter changes the output layer, which {base} shares with its input embedding",
            "merge it with merge_adapter, or train with train_unembed=False",
        )
