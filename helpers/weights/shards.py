"""Weights from file to file, a few at a time, for models that don't fit in memory."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.files import write_json
from helpers.weights.base_model import INDEX, read_config, shard_files, torch_dtype, weight_slices
from helpers.weights.exact_sum import exact_rows, row_blocks
from helpers.weights.plan import plan_merge

if TYPE_CHECKING:
    from tinker_cookbook.weights._merge import MergeOp
    from torch import Tensor


def merge_by_shards(base: Path, adapter_folder: str | Path, out: Path, dtype: str) -> None:
    """Write the merged model's weights and config.json, with one of the saved files in memory at a time.

    The plan and the arithmetic are the cookbook's, in float32 and a block of rows at a time. Its
    `build_hf_model` merges in the precision of the base model's files, and holds two of them: 7.3 GB for
    files of 2.3 GB.

    Raises:
        ModelError: base model and adapter don't belong together, or a file is damaged.
    """
    plan = plan_merge(base, adapter_folder)
    weights = dict(weight_slices(base))
    limit = max(file.stat().st_size for file in shard_files(base))
    save_shards(weights, plan, out, dtype, limit)
    config = read_config(base)
    config.pop("torch_dtype", None)  # its name before transformers 5
    write_json(out / "config.json", {**config, "dtype": dtype})


def save_shards(
    weights: dict[str, Any], plan: dict[str, list["MergeOp"]], folder: Path, dtype: str, limit: int
) -> None:
    """Merge and save weights under transformers' file names, with an index if there is more than one file.

    Args:
        weights: the base model's, as safetensors slices.
        plan: what changes them.
        folder: where to.
        dtype: precision of the saved weights.
        limit: bytes of a file; a larger weight has a file of its own.
    """
    from huggingface_hub import split_state_dict_into_shards_factory
    from safetensors.torch import save_file

    width = torch_dtype(dtype).itemsize
    split = split_state_dict_into_shards_factory(
        weights,
        get_storage_size=lambda weight: width * math.prod(weight.get_shape()),
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=limit,
    )
    for file, names in split.filename_to_tensors.items():
        tensors = {name: _merged(weights[name], plan.get(name, []), dtype) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        del tensors  # or it stays until the next file's are made
    if split.is_sharded:
        write_json(folder / INDEX, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})


def _merged(weight: Any, ops: list["MergeOp"], dtype: str) -> "Tensor":
    """A trained weight, rounded once to `dtype`. Whole numbers stay as they are."""
    import torch

    if not weight.get_dtype().startswith(("F", "BF")):
        return weight[...]
    merged = torch.empty(weight.get_shape(), dtype=torch_dtype(dtype))
    for start, stop in row_blocks(merged.shape):
        merged[start:stop] = exact_rows(weight, start, stop, ops)
    return merged
