"""A Tinker adapter in PEFT's form, beside its base model and not merged into it.

adapter_to_peft(base_model, "model_weights", "peft_adapter")
model = load_peft(base_model, "peft_adapter")
"""

import contextlib
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.errors import ModelError
from helpers.files import read_json, write_json
from helpers.weights.adapter import Adapter, read_adapter
from helpers.weights.base_model import base_folder, cause, load_base, read_config, weight_shapes
from helpers.weights.fresh_folder import fresh_folder
from helpers.weights.plan import check_adapter_fits, check_output_layer
from helpers.weights.served_format import write_chat_template

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor


def adapter_to_peft(
    base_model: str | Path,
    adapter_folder: str | Path,
    out_folder: str | Path,
    overwrite: bool = False,
    renderer: Any = None,
) -> Path:
    """Write a Tinker adapter in PEFT's form, for `PeftModel.from_pretrained` and vLLM's `enable_lora`.

    `tinker_cookbook.weights.build_lora_adapter` does the renaming. It doesn't check whether the adapter
    belongs to this base model, and PEFT only warns; so every factor is checked against the base model's
    weights here.

    Args:
        base_model: a folder, or a hub name.
        adapter_folder: Tinker's adapter, as `extract_archive` leaves it.
        out_folder: PEFT's form of it. It appears when it is complete.
        overwrite: replace what is in `out_folder`.
        renderer: of training, from `get_renderer`: its chat template is written beside the adapter, for
            whoever serves it.

    Returns:
        `out_folder`.

    Raises:
        ModelError: the adapter or the base model is missing or damaged, holds what is not handled, or they
            don't belong together.
        RunError: `out_folder` is not empty and `overwrite` is off, or can't be written.
    """
    from tinker_cookbook.weights import build_lora_adapter

    folder = base_folder(base_model)
    check_adapter_fits(folder, adapter_folder)
    with fresh_folder(out_folder, overwrite) as temporary:
        plain, made = temporary / ".plain", temporary / ".peft"
        _write_plain(read_adapter(adapter_folder), plain)
        try:
            with _quiet("tinker_cookbook.weights"):
                build_lora_adapter(
                    base_model=str(folder),
                    adapter_path=str(plain),
                    output_path=str(made),
                    trust_remote_code=False,
                )
        except (ValueError, OSError) as error:
            raise ModelError(
                f"can't bring the adapter {adapter_folder} into PEFT's form: {cause(error)}",
                "check that base model and checkpoint belong together",
            ) from error
        for file in made.iterdir():
            file.rename(temporary / file.name)
        made.rmdir()
        shutil.rmtree(plain)
        config = read_json(temporary / "adapter_config.json")
        write_json(temporary / "adapter_config.json", {**config, "base_model_name_or_path": str(base_model)})
        if renderer is not None:
            write_chat_template(temporary, renderer)
    return Path(out_folder)


def _write_plain(adapter: Adapter, folder: Path) -> None:
    """The same change with one rank and one scale, which is what the cookbook reads.

    Where the config gives modules ranks or scales of their own, factors of lower rank are filled up with
    zeros, and each scale moves into its B.
    """
    from safetensors.torch import save_file

    config, tensors = adapter.config, {}
    rank, alpha = config.r, config.lora_alpha
    own = bool(config.use_rslora or config.rank_pattern or config.alpha_pattern)
    if own:
        rank = alpha = max(config.rank_of(module) for module in adapter.pairs)
    for module, (a, b) in adapter.pairs.items():
        if own:
            a, b = _filled_up(a, b.float() * config.scale_of(module), rank)
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    write_json(folder / "adapter_config.json", {"r": rank, "lora_alpha": alpha})


def _filled_up(a: "Tensor", b: "Tensor", rank: int) -> tuple["Tensor", "Tensor"]:
    from torch.nn.functional import pad

    more = max(0, rank - a.shape[-2])
    return pad(a, (0, 0, 0, more)), pad(b, (0, more))


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def check_peft_adapter(base_model: str | Path, peft_folder: str | Path) -> Adapter:
    """Check that an adapter has PEFT's names for modules of this base model. PEFT and vLLM leave out a factor
    whose module they don't find, and compute with the base model's weight.

    Args:
        base_model: a folder, or a hub name.
        peft_folder: an adapter in PEFT's form, as `adapter_to_peft` writes it.

    Raises:
        ModelError: as `read_adapter`; or a module is not in the base model, has another shape there, or is an
            output layer that is also the input embedding.
    """
    adapter, base = read_adapter(peft_folder), base_folder(base_model)
    shapes = _module_shapes(base)
    for module, (a, b) in adapter.pairs.items():
        known = module if module in shapes else re.sub(r"(\.experts)\.\d+\.\w+$", r"\1", module)
        if known not in shapes or a.dim() != 2 or module.endswith(".experts"):
            raise _unknown_module(base, peft_folder, module, shapes)
        if shapes[known] not in (None, (b.shape[0], a.shape[-1])):
            raise ModelError(
                f"the adapter in {peft_folder} changes a matrix {(b.shape[0], a.shape[-1])}, and {module} of "
                f"{base} is {shapes[known]}",
                "use the base model it was trained on",
            )
    check_output_layer(base, peft_folder)
    return adapter


def _module_shapes(base: Path) -> dict[str, tuple[int, ...] | None]:
    """Shape of each module's weight, by PEFT's name; None where the files pack or fuse it."""
    from tinker_cookbook.weights._adapter import _SERVING_PREFIX_REMAPS

    config = read_config(base)
    shapes: dict[str, Any] = {}
    for name, shape in weight_shapes(base).items():
        for old, new in _SERVING_PREFIX_REMAPS.get(config.get("model_type", ""), ()):
            name = name.replace(old, new)
        module, _, kind = name.rpartition(".")
        plain = kind == "weight" and "quantization_config" not in config
        shapes[module] = shape if plain else shapes.get(module)
    return shapes


def _unknown_module(base: Path, folder: str | Path, module: str, shapes: dict[str, Any]) -> ModelError:
    kind = module.rsplit(".", 1)[-1]
    example = next((name for name in shapes if name.endswith(f".{kind}")), next(iter(shapes)))
    return ModelError(
        f"the adapter in {folder} holds base_model.model.{module}.lora_A.weight, and {base} has no such "
        f"module: expected names such as base_model.model.{example}.lora_A.weight",
        "make the PEFT form with adapter_to_peft (notebook 05_merge), or use its own base model",
    )


def load_peft(base_model: str | Path, peft_folder: str | Path, dtype: str = "float32") -> "PeftModel":
    """Base model with its adapter beside it, not merged: the guide's `PeftModel.from_pretrained`.

    Raises:
        ModelError: either can't be loaded, or `check_peft_adapter` refuses the two.
    """
    from peft import PeftModel

    check_peft_adapter(base_model, peft_folder)
    base = load_base(base_model, dtype)
    try:
        return PeftModel.from_pretrained(base, str(peft_folder)).eval()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"can't load the adapter {peft_folder}: {cause(error)}",
            "run notebook 05_merge from the top",
        ) from error
