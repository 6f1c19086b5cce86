"""From an adapter to one model that any Hugging Face or vLLM user can load.

    adapter_to_peft(base_model, "model_weights", "peft_adapter")      # Tinker's names to PEFT's
    merge_adapter(base_model, "model_weights", "merged_model")        # W + (alpha / r)·B·A, then saved

The merge is computed in float32 whatever is saved: the delta B·A is often smaller than the step between two bfloat16
numbers next to W, so adding in bfloat16 loses part of what was trained. For the same reason the saved precision is a
choice: float32 keeps the trained model to about 1e-4 in logprobs; bfloat16 halves the folder and rounds every merged
weight once.
"""

import contextlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any, Iterator

from helpers.errors import ModelError
from helpers.export import fresh_folder, lora_pairs, read_adapter

DTYPES = ("float32", "bfloat16", "float16")


def torch_dtype(name: str) -> Any:
    """The torch dtype called `name`: float32, bfloat16 or float16.

    Raises:
        ModelError: another name.
    """
    import torch

    if name not in DTYPES:
        raise ModelError(f"no precision {name!r}", f"use one of {', '.join(DTYPES)}")
    return getattr(torch, name)


def load_base(base_model: str | Path, dtype: str = "float32") -> Any:
    """The base model from a folder or a hub name, in evaluation mode, on the CPU.

    Raises:
        ModelError: it is not there, not whole, or the hub can't be reached.
    """
    from transformers import AutoModelForCausalLM

    precision = torch_dtype(dtype)
    try:
        with _no_bars():
            return AutoModelForCausalLM.from_pretrained(str(base_model), dtype=precision).eval()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"can't load the base model {base_model}: {_first_line(error)}", _base_advice(base_model)) from error


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """transformers draws a bar for every load and save; they would stand in the notebook's outputs with a new time each run."""
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0][:300]


def _base_advice(base_model: str | Path) -> str:
    if str(base_model).startswith(("/", "~", ".")):
        return "run notebook 00_start_here, which makes the local base model, or correct the path"
    return "check the name and the connection to the model hub, or use a local folder"


def base_folder(base_model: str | Path) -> Path:
    """The folder of a base model: itself, or the hub's local copy of a name (downloaded if need be).

    Raises:
        ModelError: there is no such folder or model, or it has no config.json or no safetensors weights.
    """
    folder = Path(base_model).expanduser()
    if not folder.is_dir():
        if str(base_model).startswith(("/", "~", ".")):
            raise ModelError(f"there is no base model at {base_model}", _base_advice(base_model))
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(str(base_model), allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]))
        except Exception as error:
            raise ModelError(f"can't get the base model {base_model}: {_first_line(error)}", _base_advice(base_model)) from error
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder} is not a whole model: config.json or *.safetensors missing", _base_advice(folder))
    return folder


def weight_shapes(folder: str | Path) -> dict[str, tuple[int, ...]]:
    """Shape of each weight in a model folder, from the file headers alone.

    Raises:
        ModelError: a file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    shapes = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as handle:
                shapes.update({key: tuple(handle.get_slice(key).get_shape()) for key in handle.keys()})
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file} is damaged: {error}", "make or download the model again") from error
    return shapes


# ---- adapter to PEFT


def adapter_to_peft(base_model: str | Path, adapter_folder: str | Path, out_folder: str | Path, overwrite: bool = False) -> Path:
    """Write a Tinker adapter in PEFT's form, for `PeftModel.from_pretrained` and vLLM's `enable_lora`.

    `tinker_cookbook.weights.build_lora_adapter` does the renaming. It doesn't look whether the adapter belongs to this
    base model, and PEFT only warns; so every factor is checked against the base model's weights here.

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
        with _quiet("tinker_cookbook.weights"):
            try:
                build_lora_adapter(base_model=str(folder), adapter_path=str(adapter_folder), output_path=str(temporary))
            except (ValueError, OSError) as error:
                raise ModelError(f"can't bring the adapter {adapter_folder} into PEFT's form: {_first_line(error)}",
                                 "check that base model and checkpoint belong together") from error
        config = json.loads((temporary / "adapter_config.json").read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = str(base_model)
        (temporary / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
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


def check_adapter_fits(base: str | Path, adapter_folder: str | Path) -> None:
    """Check that each pair of factors has a weight in the base model, of its shape.

    Raises:
        ModelError: one has not, or the adapter changes an output layer that the base model shares with its input
            embedding (merging it would change the input side too, so the merged model would not be the trained one).
    """
    shapes = weight_shapes(base)
    config = json.loads((Path(base) / "config.json").read_text(encoding="utf-8"))
    tied = "lm_head.weight" not in shapes or config.get("tie_word_embeddings", False)
    _, tensors = read_adapter(adapter_folder)
    for module, (a, b) in lora_pairs(tensors).items():
        if ".experts" in module:
            continue  # three-dimensional, renamed by the cookbook
        if module.endswith(("unembed_tokens", "lm_head")):
            if tied:
                raise ModelError(f"the adapter changes the output layer ({module}), which {base} shares with its input embedding",
                                 "train with train_unembed=False, or on a base model with an output layer of its own")
            module = "lm_head"
        shape = shapes.get(f"{module}.weight")
        if shape != (b.shape[0], a.shape[-1]):
            found = f"has shape {shape}" if shape else "does not exist"
            raise ModelError(f"the adapter in {adapter_folder} was not trained on {base}: it changes {module}.weight of shape "
                             f"{(b.shape[0], a.shape[-1])}, which {found} there",
                             "use the base model that the run's manifest names, or the right checkpoint")


def load_peft(base_model: str | Path, peft_folder: str | Path, dtype: str = "float32") -> Any:
    """Base model with its adapter beside it, not merged: the guide's `PeftModel.from_pretrained`.

    Raises:
        ModelError: either can't be loaded.
    """
    from peft import PeftModel

    base = load_base(base_model, dtype)
    try:
        return PeftModel.from_pretrained(base, str(peft_folder)).eval()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"can't load the adapter {peft_folder}: {_first_line(error)}", "run notebook 05_merge from the top") from error


# ---- merge


def merge_adapter(base_model: str | Path, adapter_folder: str | Path, out_folder: str | Path, dtype: str = "float32",
                  overwrite: bool = False) -> dict[str, Any]:
    """Merge an adapter into its base model and save the whole: weights, tokenizer, chat template, generation config.

    Args:
        base_model: a folder, or a hub name.
        adapter_folder: Tinker's adapter (`adapter_model.safetensors`, `adapter_config.json`) or its PEFT form.
        out_folder: the merged model. It appears when it is complete; an interrupted merge leaves nothing.
        dtype: precision of the saved weights; the merge itself is in float32.
        overwrite: replace what is in `out_folder`.

    Returns:
        `{"dtype", "files": {name: bytes}, "parameters", "changed": count of weights that differ from the base's,
        "rounding": largest step from the merged weight to the saved one}`.

    Raises:
        ModelError: base model or adapter is missing or damaged, or they don't belong together, or the result isn't finite.
        RunError: `out_folder` is not empty and `overwrite` is off, or can't be written.
    """
    torch_dtype(dtype)
    folder = base_folder(base_model)
    with fresh_folder(out_folder, overwrite) as temporary:
        peft_folder = temporary / ".peft"
        adapter_to_peft(base_model, adapter_folder, peft_folder)
        merged = _merged_in_float32(folder, peft_folder)
        shutil.rmtree(peft_folder)
        changed = _count_changed(folder, merged)
        rounding = _round_weights(merged, dtype)
        with _no_bars():
            merged.save_pretrained(temporary)
        _save_tokenizer(folder, temporary)
        _check_saved(folder, temporary)
        return {
            "dtype": dtype,
            "files": {p.name: p.stat().st_size for p in sorted(temporary.iterdir())},
            "parameters": sum(p.numel() for p in merged.parameters()),
            "changed": changed,
            "rounding": rounding,
        }


def _merged_in_float32(folder: Path, peft_folder: Path) -> Any:
    try:
        return load_peft(folder, peft_folder).merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise ModelError(f"the merged weights are not finite: {_first_line(error)}",
                         "the training diverged: choose an earlier checkpoint or a smaller learning rate") from error


def _count_changed(folder: Path, merged: Any) -> int:
    """How many weight tensors of the merged model differ from the base model's."""
    import torch
    from safetensors import safe_open

    state, count = merged.state_dict(), 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as handle:
            count += sum(key in state and not torch.equal(handle.get_tensor(key).float(), state[key]) for key in handle.keys())
    return count


def _round_weights(model: Any, dtype: str) -> float:
    """Cast to the saved precision in place; returns the largest change of a weight."""
    import torch

    precision, largest = torch_dtype(dtype), 0.0
    with torch.no_grad():
        for parameter in model.parameters():
            rounded = parameter.data.to(precision)
            largest = max(largest, float((rounded.float() - parameter.data).abs().max()))
            parameter.data = rounded
    model.config.dtype = precision
    return largest


def _save_tokenizer(folder: Path, out: Path) -> None:
    from transformers import AutoTokenizer

    try:
        AutoTokenizer.from_pretrained(str(folder)).save_pretrained(out)
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} has no usable tokenizer: {_first_line(error)}", _base_advice(folder)) from error
    generation = folder / "generation_config.json"
    if generation.is_file():
        shutil.copyfile(generation, out / "generation_config.json")


def _check_saved(folder: Path, out: Path) -> None:
    """The saved model has every weight of the base model, in its shape."""
    wanted, saved = weight_shapes(folder), weight_shapes(out)
    wrong = sorted(name for name in wanted if saved.get(name) != wanted[name])
    if wrong:
        raise ModelError(f"the merged model lacks {len(wrong)} weights of the base model, {wrong[0]} among them",
                         "this architecture needs tinker_cookbook.weights.build_hf_model")
