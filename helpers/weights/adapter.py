"""What a LoRA adapter holds: its factors A and B, and how much they change.

adapter = read_adapter("model_weights")
describe_adapter("model_weights")["rank"]
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.errors import ModelError
from helpers.weights.adapter_config import AdapterConfig, read_adapter_config

if TYPE_CHECKING:
    from torch import Tensor

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
OUTPUT_LAYERS = ("unembed_tokens", "lm_head")  # Tinker's name and Hugging Face's
FACTOR = re.compile(r"base_model\.model\.((?!base_model\.)[\w.]+)\.lora_([AB])\.weight")
EXAMPLE = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter that was read and checked.

    Attributes:
        config: ranks and scales.
        pairs: `{module path: (A, B)}`, A of shape (rank, in) and B of (out, rank). Experts may be stacked, as
            Tinker stores them: (experts, rank, in) and (experts, out, rank).
    """

    config: AdapterConfig
    pairs: dict[str, tuple["Tensor", "Tensor"]]


def read_adapter(folder: str | Path) -> Adapter:
    """Read an adapter folder, Tinker's or PEFT's. Whatever uses an adapter reads it here, so that all refuse
    the same: what is not handled is refused by name, never left out.

    Raises:
        ModelError: a file is missing or damaged; the config has a key or value that is not handled; or a
            tensor is no LoRA factor, has no partner, another precision, values that are not finite, or a rank
            that the config does not give it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    missing = [name for name in ADAPTER_FILES if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"{folder} is not an adapter folder: {' and '.join(missing)} missing",
            "run notebook 04_export again",
        )
    config = read_adapter_config(folder / "adapter_config.json")
    try:
        tensors = load_file(folder / "adapter_model.safetensors")
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"the adapter in {folder} is damaged: {error}", "download and unpack it again"
        ) from error
    pairs = _pairs(folder, tensors)
    for module, (a, b) in pairs.items():
        _check_pair(folder, config, module, a, b)
    return Adapter(config, pairs)


def _pairs(folder: Path, tensors: dict[str, "Tensor"]) -> dict[str, tuple["Tensor", "Tensor"]]:
    halves: dict[str, dict[str, Tensor]] = {}
    for name in sorted(tensors):
        factor = FACTOR.fullmatch(name)
        if factor is None:
            raise ModelError(
                f"{folder}/adapter_model.safetensors holds {name}, which is no LoRA factor: their names look "
                f"like {EXAMPLE}",
                "export the right checkpoint, or train without what this tensor belongs to",
            )
        halves.setdefault(factor[1], {})[factor[2]] = tensors[name]
    if not halves:
        raise ModelError(
            f"{folder}/adapter_model.safetensors holds no LoRA weights", "export the right checkpoint"
        )
    for module, found in halves.items():
        if len(found) == 1:
            has, lacks = ("A", "B") if "A" in found else ("B", "A")
            name = f"base_model.model.{module}.lora_"
            raise ModelError(
                f"the adapter has {name}{has}.weight but no {name}{lacks}.weight",
                "export the checkpoint again",
            )
    return {module: (found["A"], found["B"]) for module, found in halves.items()}


def _check_pair(folder: Path, config: AdapterConfig, module: str, a: "Tensor", b: "Tensor") -> None:
    """Experts in one tensor (3-D) may have their own rank."""
    if not config.selects(module):
        raise ModelError(
            f"{folder} holds tensors of {module}, which target_modules, exclude_modules or "
            "layers_to_transform in its adapter_config.json leave out, so PEFT would not use them",
            'if all tensors were trained, say so there: "target_modules": "all-linear", the other two null',
        )
    dims = (2, 3) if ".experts" in module else (2,)
    matrices = a.dim() in dims and b.dim() == a.dim() and a.shape[-2] == b.shape[-1]
    if not matrices or (a.dim() == 2 and a.shape[0] != config.rank_of(module)):
        raise ModelError(
            f"the ranks in {folder} differ: {module} has factors of shape {tuple(a.shape)} and "
            f"{tuple(b.shape)}, and adapter_config.json says rank {config.rank_of(module)}",
            "export the checkpoint again",
        )
    for name, factor in (("A", a), ("B", b)):
        dtype = str(factor.dtype).removeprefix("torch.")
        if dtype not in DTYPES:
            raise ModelError(
                f"{folder}: lora_{name} of {module} is in {dtype}", f"save it in one of {', '.join(DTYPES)}"
            )
        if not factor.isfinite().all():
            raise ModelError(
                f"{folder}: lora_{name} of {module} holds numbers that are not finite",
                "the training diverged: choose an earlier checkpoint or a smaller learning rate",
            )


def lora_pairs(folder: str | Path) -> dict[str, tuple["Tensor", "Tensor"]]:
    """The factors of each module that an adapter, Tinker's or PEFT's, changes.

    Returns:
        `{module path: (A, B)}`, A of shape (rank, in) and B of (out, rank).

    Raises:
        ModelError: as `read_adapter`.
    """
    return read_adapter(folder).pairs


def trains_output_layer(folder: str | Path) -> bool:
    """Whether an adapter, Tinker's or PEFT's, changes the output layer.

    Raises:
        ModelError: as `read_adapter`.
    """
    return any(module.endswith(OUTPUT_LAYERS) for module in lora_pairs(folder))


def delta_norm(a: "Tensor", b: "Tensor", scale: float) -> float:
    """Frobenius norm of `scale * B @ A`, without making the large product: ‖BA‖² = sum(BᵀB ∘ AAᵀ).

    Args:
        a: A, of shape (rank, in), or (experts, rank, in).
        b: B, of shape (out, rank), or (experts, out, rank).
        scale: of B·A, alpha / rank as a rule.
    """
    a, b = a.double(), b.double()
    squared = ((b.transpose(-1, -2) @ b) * (a @ a.transpose(-1, -2))).sum()
    return scale * float(squared.clamp(min=0)) ** 0.5


def describe_adapter(folder: str | Path) -> dict[str, Any]:
    """What an adapter changes, and how much.

    Returns:
        `rank`, `alpha`, `scale` (of modules without a rank or alpha of their own), `target_modules`, `dtype`,
        `parameters`, `parameters_per_layer` (`{layer or "other": count}`), and `modules`: rows `{"name",
        "layer" (None outside the layers), "module", "parameters", "norm"}`, where `norm` is the Frobenius
        norm of scale·B·A, the change of that weight matrix.

    Raises:
        ModelError: as `read_adapter`.
    """
    adapter = read_adapter(folder)
    config = adapter.config
    modules = [_describe_module(name, a, b, config.scale_of(name)) for name, (a, b) in adapter.pairs.items()]
    dtypes = {str(factor.dtype).removeprefix("torch.") for pair in adapter.pairs.values() for factor in pair}
    modules.sort(key=lambda row: (row["layer"] is None, row["layer"] or 0, row["name"]))
    per_layer: dict[int | str, int] = {}
    for row in modules:
        layer = "other" if row["layer"] is None else row["layer"]
        per_layer[layer] = per_layer.get(layer, 0) + row["parameters"]
    return {
        "rank": config.r,
        "alpha": config.lora_alpha,
        "scale": config.scale_of(""),
        "target_modules": sorted({row["module"] for row in modules}),
        "dtype": ", ".join(sorted(dtypes)),
        "parameters": sum(row["parameters"] for row in modules),
        "parameters_per_layer": per_layer,
        "modules": modules,
    }


def _describe_module(name: str, a: "Tensor", b: "Tensor", scale: float) -> dict[str, Any]:
    match = re.search(r"\.layers\.(\d+)\.", f".{name}")
    return {
        "name": name,
        "layer": int(match[1]) if match else None,
        "module": name.rsplit(".", 1)[-1],
        "parameters": a.numel() + b.numel(),
        "norm": delta_norm(a, b, scale),
    }
