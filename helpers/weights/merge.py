"""From an adapter to one model that any Hugging Face or vLLM user can load.

    merge_adapter(base_model, "model_weights", "merged_model")        # W + (alpha / r)·B·A, then saved

A model that fits in memory is merged there, by PEFT's `merge_and_unload`; a larger one file by file, with the
cookbook's plan. Either way the saved files are read back and compared with W + (alpha / r)·B·A. That the
adapter is read right is for `read_adapter`, which refuses what it doesn't know, and for `compare_logprobs`.

The merge is computed in float32 whatever is saved: the delta B·A is often smaller than the step between two
bfloat16 numbers next to W, so adding in bfloat16 loses part of what was trained. For the same reason the
saved precision is a
choice: float32 keeps the trained model to about 1e-4 in logprobs; bfloat16 halves the folder and rounds every
merged weight once.
"""

import contextlib
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helpers.clock import worked
from helpers.errors import ModelError
from helpers.files import write_text
from helpers.memory import machine_memory
from helpers.weights.adapter import lora_pairs, trains_output_layer
from helpers.weights.archive import GIB
from helpers.weights.base_model import (
    base_advice,
    base_folder,
    cause,
    is_tied,
    no_bars,
    read_config,
    shard_files,
    torch_dtype,
    untie,
    weight_shapes,
    weight_slices,
)
from helpers.weights.check import compare_with_plan, not_finite
from helpers.weights.fresh_folder import fresh_folder
from helpers.weights.peft_form import adapter_to_peft, load_peft
from helpers.weights.plan import plan_merge
from helpers.weights.served_format import write_chat_template, write_end_tokens
from helpers.weights.shards import merge_by_shards

METHODS = ("auto", "memory", "shards")
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "tiktoken.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)


@worked("merging")
def merge_adapter(
    base_model: str | Path,
    adapter_folder: str | Path,
    out_folder: str | Path,
    dtype: str = "float32",
    overwrite: bool = False,
    method: str = "auto",
    renderer: Any = None,
) -> dict[str, Any]:
    """Merge an adapter into its base model and save the whole, tokenizer and chat template included.

    Where base model and output layer share one weight and the adapter changes the output layer, the merged
    model has
    two: the input embedding stays, and `tie_word_embeddings` becomes false.

    Args:
        base_model: a folder, or a hub name.
        adapter_folder: Tinker's adapter (`adapter_model.safetensors`, `adapter_config.json`) or its PEFT
            form.
        out_folder: the merged model. It appears when it is complete; an interrupted merge leaves nothing.
        dtype: precision of the saved weights; the merge itself is in float32.
        overwrite: replace what is in `out_folder`.
        method: "memory" (PEFT, the whole model in float32), "shards" (one file at a time), or "auto": memory
            if it is enough, else shards.
        renderer: of training, from `get_renderer`: the folder gets its chat template and its end tokens; None
            leaves those of the base model.

    Returns:
        `{"dtype", "method", "why": why this method, "files": {name: bytes}, "parameters", "changed": count of
        weights that differ from the base's, "rounding": largest step from the merged weight to the saved one,
        "untied"}`.

    Raises:
        ModelError: base model or adapter is missing or damaged, or they don't belong together, or the result
            isn't finite, or the disk is full.
        RunError: `out_folder` is not empty and `overwrite` is off, or can't be written.
    """
    torch_dtype(dtype)
    folder = base_folder(base_model)
    _check_tokenizer(folder)
    method, why = choose_method(folder, adapter_folder, method)
    _check_disk(folder, Path(out_folder).absolute(), dtype)
    if method == "shards":  # it takes long enough to say why
        print(f"merging one weight file at a time: {why}", flush=True)
    with fresh_folder(out_folder, overwrite) as temporary, _write_errors(out_folder):
        report = _merge_into(temporary, folder, adapter_folder, dtype, method, renderer)
    return {"dtype": dtype, "method": method, "why": why, **report}


def _merge_into(
    out: Path, folder: Path, adapter_folder: str | Path, dtype: str, method: str, renderer: Any
) -> dict[str, Any]:
    work = out / ".work"
    work.mkdir()
    untied = trains_output_layer(adapter_folder) and is_tied(folder)
    base = untie(folder, work / "untied") if untied else folder
    # Refuses what doesn't fit. Not kept: the merge gets its memory, and the check below makes it again.
    plan_merge(base, adapter_folder)
    if method == "memory":
        _merge_in_memory(base, adapter_folder, out, work, dtype)
    else:
        merge_by_shards(base, adapter_folder, out, dtype)
    for name in COMPANIONS:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
    if renderer is not None:
        write_chat_template(out, renderer)
        write_end_tokens(out, renderer)
    compared = compare_with_plan(base, out, plan_merge(base, adapter_folder), dtype)
    shutil.rmtree(work)
    return {
        "files": {p.name: p.stat().st_size for p in sorted(out.iterdir())},
        "parameters": parameter_count(out),
        "changed": compared.changed,
        "rounding": compared.rounding,
        "untied": untied,
    }


def _merge_in_memory(base: Path, adapter_folder: str | Path, out: Path, work: Path, dtype: str) -> None:
    """PEFT's merge in float32, rounded once, saved."""
    import torch
    from transformers import GenerationConfig

    precision = torch_dtype(dtype)
    adapter_to_peft(base, adapter_folder, work / "peft")
    try:
        merged: Any = load_peft(base, work / "peft").merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise not_finite(cause(error)) from error
    with torch.no_grad():
        for parameter in merged.parameters():
            parameter.data = parameter.data.to(precision)
    merged.config.dtype = precision
    generation, merged.generation_config = merged.generation_config, GenerationConfig()
    with no_bars():
        merged.save_pretrained(out)
    # Transformers itself refuses to write what some base models have, in that file or in config.json.
    write_text(out / "generation_config.json", generation.to_json_string())


# ---- how, and whether it can be done


def choose_method(folder: Path, adapter_folder: str | Path, method: str = "auto") -> tuple[str, str]:
    """ "memory" or "shards", and why, in words.

    Raises:
        ModelError: no such method, or the base model is quantised.
    """
    if method not in METHODS:
        raise ModelError(f"no method {method!r}", f"use one of {', '.join(METHODS)}")
    if is_quantised(folder):
        raise ModelError(
            f"{folder} is quantised, and a change of its weights would be lost in its steps",
            "use the unquantised model, or the cookbook's weights.build_hf_model, which knows some of them",
        )
    if method != "auto":
        return method, "as asked"
    if any(".experts" in module for module in lora_pairs(adapter_folder)):
        return "shards", "the adapter changes experts, whose form in the files transformers changes in memory"
    need, free = memory_needed(folder), machine_memory()[1]
    compared = f"the model needs {need / GIB:.1f} GiB in float32, and {free / GIB:.1f} GiB are free"
    return ("memory" if need <= free else "shards"), compared


def is_quantised(folder: Path) -> bool:
    """Whether a model's weights are stored in 8 bits or fewer. Some models say so in a file of their own."""
    config = read_config(folder)
    stated = [config.get("quantization_config"), (config.get("text_config") or {}).get("quantization_config")]
    return any(stated) or any(w.get_dtype().startswith(("F8", "F6", "F4")) for _, w in weight_slices(folder))


def parameter_count(folder: Path) -> int:
    """How many numbers a model's files hold."""
    return sum(math.prod(shape) for shape in weight_shapes(folder).values())


def memory_needed(folder: Path) -> int:
    """Bytes for a merge in memory: the parameters in float32, the files they come from, and 1 GiB more."""
    return 4 * parameter_count(folder) + sum(file.stat().st_size for file in shard_files(folder)) + GIB


def _check_tokenizer(folder: Path) -> None:
    from transformers import AutoTokenizer

    try:
        AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} has no usable tokenizer: {cause(error)}", base_advice(folder)) from error


def _check_disk(folder: Path, out: Path, dtype: str) -> None:
    need = parameter_count(folder) * torch_dtype(dtype).itemsize
    parent = next(path for path in out.parents if path.is_dir())
    free = shutil.disk_usage(parent).free
    if need > free:
        raise ModelError(
            f"no disk space for the merged model: it needs {need / GIB:.1f} GiB, and {parent} has "
            f"{free / GIB:.1f} GiB free",
            "free some, choose a folder on another disk, or save in bfloat16",
        )


@contextlib.contextmanager
def _write_errors(out: str | Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"can't write the merged model {out}: {cause(error)}",
            "check free disk space, and merge again",
        ) from error
