"""What a LoRA adapter holds: its factors A and B, and how much they change.

config, tensors = read_adapter("model_weights")
describe_adapter("model_weights")["rank"]
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.errors import ModelError, RunError
from helpers.files import read_json

if TYPE_CHECKING:
    from torch import Tensor

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
OUTPUT_LAYERS = ("unembed_tokens", "lm_head")  # Tinker's name and Hugging Face's


def read_adapter(folder: str | Path) -> tuple[dict[str, Any], dict[str, "Tensor"]]:
    """Config and tensors of an adapter folder, Tinker's or PEFT's.

    Returns:
        `adapter_config.json` as a dict, and `{tensor name: tensor}` on the CPU.

    Raises:
        ModelError: a file is missing or damaged, or the config lacks `r` or `lora_alpha`.
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
    try:
        config = read_json(folder / "adapter_config.json")
        tensors = load_file(folder / "adapter_model.safetensors")
    except RunError as error:
        raise ModelError(
            f"the adapter in {folder} is damaged: {error.what}", "download and unpack it again"
        ) from error
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"the adapter in {folder} is damaged: {error}", "download and unpack it again"
        ) from error
    for key in ("r", "lora_alpha"):
        if not isinstance(config, dict) or not isinstance(config.get(key), (int, float)) or config[key] <= 0:
            raise ModelError(
                f"{folder}/adapter_config.json has no usable {key!r}", "download and unpack it again"
            )
    if not any(".lora_A" in name for name in tensors):
        raise ModelError(
            f"{folder}/adapter_model.safetensors holds no LoRA weights", "export the right checkpoint"
        )
    return config, tensors


def lora_pairs(folder: str | Path) -> dict[str, tuple["Tensor", "Tensor"]]:
    """The factors of each module that an adapter, Tinker's or PEFT's, changes.

    Returns:
        `{module path: (A, B)}`, A of shape (rank, in) and B of (out, rank).

    Raises:
        ModelError: the adapter is missing or damaged, or an A has no B, or the other way round.
    """
    return pairs_of(read_adapter(folder)[1])


def pairs_of(tensors: dict[str, "Tensor"]) -> dict[str, tuple["Tensor", "Tensor"]]:
    """`lora_pairs` of tensors that were read already."""
    pairs = {}
    for name in sorted(tensors):
        if ".lora_A" in name:
            module = name.split(".lora_A")[0].removeprefix("base_model.model.")
            other = name.replace(".lora_A", ".lora_B")
            if other not in tensors:
                raise ModelError(f"the adapter has {name} but no {other}", "export the checkpoint again")
            pairs[module] = (tensors[name], tensors[other])
    halves = sum(".lora_B" in name for name in tensors)
    if halves != len(pairs):
        raise ModelError(
            f"the adapter has {halves} lora_B tensors for {len(pairs)} lora_A", "export the checkpoint again"
        )
    return pairs


def trains_output_layer(folder: str | Path) -> bool:
    """Whether an adapter, Tinker's or PEFT's, changes the output layer.

    Raises:
        ModelError: the adapter is missing or damaged.
    """
    return any(module.endswith(OUTPUT_LAYERS) for module in lora_pairs(folder))


def delta_norm(a: "Tensor", b: "Tensor", scale: float) -> float:
    """Frobenius norm of `scale * B @ A`, without making the large product: ‖BA‖² = sum(BᵀB ∘ AAᵀ).

    Args:
        a: A, of shape (rank, in), or (experts, rank, in).
        b: B, of shape (out, rank), or (experts, out, rank).
        scale: alpha / rank.
    """
    a, b = a.double(), b.double()
    squared = ((b.transpose(-1, -2) @ b) * (a @ a.transpose(-1, -2))).sum()
    return scale * float(squared.clamp(min=0)) ** 0.5


def describe_adapter(folder: str | Path) -> dict[str, Any]:
    """What an adapter changes, and how much.

    Returns:
        `rank`, `alpha`, `scale` (alpha / rank), `target_modules`, `dtype`, `parameters`,
        `parameters_per_layer` (`{layer or "other": count}`), and `modules`: rows `{"name", "layer" (None
        outside the layers), "module", "parameters", "norm"}`, where `norm` is the Frobenius norm of
        scale·B·A, the change of that weight matrix.

    Raises:
        ModelError: the folder is not a whole LoRA adapter.
    """
    config, tensors = read_adapter(folder)
    scale = config["lora_alpha"] / config["r"]
    modules = [_describe_module(name, a, b, scale) for name, (a, b) in pairs_of(tensors).items()]
    modules.sort(key=lambda row: (row["layer"] is None, row["layer"] or 0, row["name"]))
    per_layer: dict[int | str, int] = {}
    for row in modules:
        layer = "other" if row["layer"] is None else row["layer"]
        per_layer[layer] = per_layer.get(layer, 0) + row["parameters"]
    return {
        "rank": config["r"],
        "alpha": config["lora_alpha"],
        "scale": scale,
        "target_modules": sorted({row["module"] for row in modules}),
        "dtype": ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values()})),
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
