"""A Tinker adapter in PEFT's form, beside its base model and not merged into it.

adapter_to_peft(base_model, "model_weights", "peft_adapter")
model = load_peft(base_model, "peft_adapter")
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from helpers.errors import ModelError
from helpers.files import read_json, write_json
from helpers.weights.base_model import base_folder, cause, load_base
from helpers.weights.fresh_folder import fresh_folder
from helpers.weights.plan import check_adapter_fits

if TYPE_CHECKING:
    from peft import PeftModel


def adapter_to_peft(
    base_model: str | Path, adapter_folder: str | Path, out_folder: str | Path, overwrite: bool = False
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

    Returns:
        `out_folder`.

    Raises:
        ModelError: the adapter or the base model is missing or damaged, or they don't belong together.
        RunError: `out_folder` is not empty and `overwrite` is off, or can't be written.
    """
    from tinker_cookbook.weights import build_lora_adapter

    folder = base_folder(base_model)
    check_adapter_fits(folder, adapter_folder)
    with fresh_folder(out_folder, overwrite) as temporary:
        temporary.rmdir()  # build_lora_adapter wants to make it
        try:
            with _quiet("tinker_cookbook.weights"):
                build_lora_adapter(
                    base_model=str(folder), adapter_path=str(adapter_folder), output_path=str(temporary)
                )
        except (ValueError, OSError) as error:
            raise ModelError(
                f"can't bring the adapter {adapter_folder} into PEFT's form: {cause(error)}",
                "check that base model and checkpoint belong together",
            ) from error
        config = read_json(temporary / "adapter_config.json")
        write_json(temporary / "adapter_config.json", {**config, "base_model_name_or_path": str(base_model)})
    return Path(out_folder)


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def load_peft(base_model: str | Path, peft_folder: str | Path, dtype: str = "float32") -> "PeftModel":
    """Base model with its adapter beside it, not merged: the guide's `PeftModel.from_pretrained`.

    Raises:
        ModelError: either can't be loaded.
    """
    from peft import PeftModel

    base = load_base(base_model, dtype)
    try:
        return PeftModel.from_pretrained(base, str(peft_folder)).eval()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"can't load the adapter {peft_folder}: {cause(error)}",
            "run notebook 05_merge from the top",
        ) from error
