"""From an adapter to one model that any Hugging Face or vLLM user can load.

    adapter_to_peft(base_model, "model_weights", "peft_adapter")      # Tinker's names to PEFT's
    merge_adapter(base_model, "model_weights", "merged_model")        # W + (alpha / r)·B·A, then saved

A model that fits in memory is merged there, by PEFT's `merge_and_unload`; a larger one file by file, by the cookbook's
`build_hf_model`. Either way the saved files are read back and compared with W + (alpha / r)·B·A.

The merge is computed in float32 whatever is saved: the delta B·A is often smaller than the step between two bfloat16
numbers next to W, so adding in bfloat16 loses part of what was trained. For the same reason the saved precision is a
choice: float32 keeps the trained model to about 1e-4 in logprobs; bfloat16 halves the folder and rounds every merged
weight once.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import math
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from helpers.errors import ModelError, RunError
from helpers.files import read_json, write_json
from helpers.weights.export import GIB, fresh_folder, lora_pairs, read_adapter

DTYPES = ("float32", "bfloat16", "float16")
METHODS = ("auto", "memory", "shards")
INDEX = "model.safetensors.index.json"
OUTPUT_LAYERS = ("unembed_tokens", "lm_head")  # Tinker's name and Hugging Face's
BLOCK = 1 << 22  # numbers worked on at once: 16 MiB in float32
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)


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
        raise ModelError(
            f"can't load the base model {base_model}: {_first_line(error)}", _base_advice(base_model)
        ) from error


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
            folder = Path(
                snapshot_download(
                    str(base_model), allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]
                )
            )
        except Exception as error:
            raise ModelError(
                f"can't get the base model {base_model}: {_first_line(error)}", _base_advice(base_model)
            ) from error
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder} is not a whole model: config.json or *.safetensors missing", _base_advice(folder)
        )
    return folder


def shard_files(folder: str | Path) -> list[Path]:
    """The files that hold a model's weights: those its index names, else `model.safetensors`, else every safetensors file.

    Raises:
        ModelError: the index is damaged, or names a file that is not there.
    """
    folder = Path(folder)
    if (folder / INDEX).is_file():
        try:
            names = sorted(set(read_json(folder / INDEX)["weight_map"].values()))
        except (RunError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"{folder / INDEX} is damaged: {_first_line(error)}", "make or download the model again"
            ) from error
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ModelError(
                f"{folder} lacks {len(missing)} of its {len(names)} weight files, {missing[0]} among them",
                "download the model again; a second download goes on where the first stopped",
            )
        return [folder / name for name in names]
    whole = folder / "model.safetensors"
    return [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))


def weight_shapes(folder: str | Path) -> dict[str, tuple[int, ...]]:
    """Shape of each weight in a model folder, from the file headers alone.

    Raises:
        ModelError: a file is missing or damaged.
    """
    return {name: tuple(weight.get_shape()) for name, weight in _weights(folder)}


def _weights(folder: str | Path) -> Iterator[tuple[str, Any]]:
    """Name and safetensors slice of each weight, file by file.

    A slice reads only what is taken from it, as pread does; with mmap, what was read once would count as this process's memory.
    """
    from safetensors import SafetensorError, safe_open

    for file in shard_files(folder):
        try:
            with safe_open(file, framework="pt", backend="pread") as handle:
                for name in handle.keys():
                    yield name, handle.get_slice(name)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file} is damaged: {error}", "make or download the model again") from error


# ---- adapter to PEFT


def adapter_to_peft(
    base_model: str | Path, adapter_folder: str | Path, out_folder: str | Path, overwrite: bool = False
) -> Path:
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
                build_lora_adapter(
                    base_model=str(folder), adapter_path=str(adapter_folder), output_path=str(temporary)
                )
            except (ValueError, OSError) as error:
                raise ModelError(
                    f"can't bring the adapter {adapter_folder} into PEFT's form: {_first_line(error)}",
                    "check that base model and checkpoint belong together",
                ) from error
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
    """Check that each pair of factors has a weight in the base model, of its shape, and the rank that the config states.

    Raises:
        ModelError: one has not, or the adapter changes an output layer that the base model shares with its input
            embedding (in PEFT's form both would change; `merge_adapter` gives the output layer a weight of its own).
    """
    base = Path(base)
    if trains_output_layer(adapter_folder) and is_tied(base):
        raise ModelError(
            f"the adapter changes the output layer, which {base} shares with its input embedding",
            "merge it with merge_adapter, or train with train_unembed=False",
        )
    plan_merge(base, adapter_folder)


def trains_output_layer(adapter_folder: str | Path) -> bool:
    """Whether an adapter, Tinker's or PEFT's, changes the output layer.

    Raises:
        ModelError: the adapter is missing or damaged.
    """
    return any(module.endswith(OUTPUT_LAYERS) for module in lora_pairs(read_adapter(adapter_folder)[1]))


def is_tied(base: str | Path) -> bool:
    """Whether a model's output layer is its input embedding.

    Raises:
        ModelError: a weight file is missing or damaged.
    """
    return "lm_head.weight" not in weight_shapes(base) or bool(
        _config(base).get("tie_word_embeddings", False)
    )


def _config(folder: str | Path) -> dict[str, Any]:
    try:
        return read_json(Path(folder) / "config.json")
    except RunError as error:
        raise ModelError(_first_line(error), _base_advice(folder)) from error


def plan_merge(base: str | Path, adapter_folder: str | Path) -> dict[str, list[Any]]:
    """Which factors change which weight, as the cookbook sees it for this architecture: `{weight name: [MergeOp]}`.

    Raises:
        ModelError: the adapter's ranks don't fit together, or it doesn't fit this base model.
    """
    from tinker_cookbook.exceptions import WeightsMergeError
    from tinker_cookbook.weights._merge import detect_merge_profile, plan_merge_ops, validate_merge_op_shapes

    config, tensors = read_adapter(adapter_folder)
    for module, (a, b) in lora_pairs(tensors).items():
        # The scale is alpha / r, so a wrong r scales every change. Experts (three-dimensional) may have a rank of their own.
        if (
            a.dim() < 2
            or b.dim() < 2
            or a.shape[-2] != b.shape[-1]
            or (a.dim() == 2 and a.shape[0] != config["r"])
        ):
            raise ModelError(
                f"the ranks in {adapter_folder} differ: {module} has factors of shape {tuple(a.shape)} and {tuple(b.shape)}, "
                f"and adapter_config.json says r = {config['r']}",
                "export the checkpoint again",
            )
    shapes = weight_shapes(base)
    try:
        plan = plan_merge_ops(tensors, config, set(shapes), detect_merge_profile(_config(base), set(shapes)))
        validate_merge_op_shapes(plan, shapes)
        if changed := [name for name in plan if name.endswith("embed_tokens.weight")]:
            raise ValueError(f"it changes the input embedding {changed[0]}, which Tinker does not train")
    except (WeightsMergeError, ValueError, KeyError, IndexError) as error:
        raise ModelError(
            f"the adapter in {adapter_folder} was not trained on {base}: {_first_line(error)}",
            "use the base model that the run's manifest names, or the right checkpoint",
        ) from error
    return plan


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
        raise ModelError(
            f"can't load the adapter {peft_folder}: {_first_line(error)}",
            "run notebook 05_merge from the top",
        ) from error


# ---- merge


def merge_adapter(
    base_model: str | Path,
    adapter_folder: str | Path,
    out_folder: str | Path,
    dtype: str = "float32",
    overwrite: bool = False,
    method: str = "auto",
) -> dict[str, Any]:
    """Merge an adapter into its base model and save the whole: weights, tokenizer, chat template, generation config.

    Where base model and output layer share one weight and the adapter changes the output layer, the merged model has two:
    the input embedding stays, and `tie_word_embeddings` becomes false.

    Args:
        base_model: a folder, or a hub name.
        adapter_folder: Tinker's adapter (`adapter_model.safetensors`, `adapter_config.json`) or its PEFT form.
        out_folder: the merged model. It appears when it is complete; an interrupted merge leaves nothing.
        dtype: precision of the saved weights; the merge itself is in float32.
        overwrite: replace what is in `out_folder`.
        method: "memory" (PEFT, the whole model in float32), "shards" (the cookbook, one file at a time), or "auto":
            memory if it is enough, else shards.

    Returns:
        `{"dtype", "method", "why": why this method, "files": {name: bytes}, "parameters", "changed": count of weights that
        differ from the base's, "rounding": largest step from the merged weight to the saved one, "untied"}`.

    Raises:
        ModelError: base model or adapter is missing or damaged, or they don't belong together, or the result isn't finite,
            or the disk is full.
        RunError: `out_folder` is not empty and `overwrite` is off, or can't be written.
    """
    torch_dtype(dtype)
    folder = base_folder(base_model)
    _check_tokenizer(folder)
    method, why = choose_method(folder, adapter_folder, method)
    untied = trains_output_layer(adapter_folder) and is_tied(folder)
    _check_disk(folder, Path(out_folder).absolute(), dtype, method)
    if method == "shards":  # it takes long enough to say why
        print(f"merging one weight file at a time: {why}", flush=True)
    with fresh_folder(out_folder, overwrite) as temporary, _write_errors(out_folder):
        work = temporary / ".work"
        work.mkdir()
        base = untie(folder, work / "untied") if untied else folder
        plan_merge(
            base, adapter_folder
        )  # refuses what doesn't fit; made again below, so that the merge has its memory
        (_merge_in_memory if method == "memory" else _merge_by_shards)(
            base, adapter_folder, temporary, work, dtype
        )
        for name in COMPANIONS:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, temporary / name)
        changed, rounding = compare_with_plan(base, temporary, plan_merge(base, adapter_folder), dtype)
        shutil.rmtree(work)
        return {
            "dtype": dtype,
            "method": method,
            "why": why,
            "files": {p.name: p.stat().st_size for p in sorted(temporary.iterdir())},
            "parameters": sum(math.prod(shape) for shape in weight_shapes(temporary).values()),
            "changed": changed,
            "rounding": rounding,
            "untied": untied,
        }


def choose_method(folder: Path, adapter_folder: str | Path, method: str = "auto") -> tuple[str, str]:
    """ "memory" or "shards", and why, in words.

    Raises:
        ModelError: no such method, or the base model is quantised.
    """
    if method not in METHODS:
        raise ModelError(f"no method {method!r}", f"use one of {', '.join(METHODS)}")
    if "quantization_config" in _config(folder):
        raise ModelError(
            f"{folder} is quantised, and a change of its weights would be lost in its steps",
            "use the unquantised model, or tinker_cookbook.weights.build_hf_model, which knows some such formats",
        )
    if method != "auto":
        return method, "as asked"
    if any(".experts" in module for module in lora_pairs(read_adapter(adapter_folder)[1])):
        return "shards", "the adapter changes experts, whose form in the files transformers changes in memory"
    need, free = memory_needed(folder), free_memory()
    compared = f"the model needs {need / GIB:.1f} GiB in float32, and {free / GIB:.1f} GiB are free"
    return ("memory" if need <= free else "shards"), compared


def memory_needed(folder: Path) -> int:
    """Bytes for a merge in memory: the parameters in float32, the files they are read from (mapped), and 1 GiB for the work."""
    parameters = sum(math.prod(shape) for shape in weight_shapes(folder).values())
    return 4 * parameters + sum(file.stat().st_size for file in shard_files(folder)) + GIB


def free_memory() -> int:
    """Bytes that this process can still use, within the container's limit if there is one."""
    import psutil

    free = psutil.virtual_memory().available
    try:
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # no container, or no limit ("max")
        return free
    return min(free, limit - used)


def _check_tokenizer(folder: Path) -> None:
    from transformers import AutoTokenizer

    try:
        AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{folder} has no usable tokenizer: {_first_line(error)}", _base_advice(folder)
        ) from error


def _check_disk(folder: Path, out: Path, dtype: str, method: str) -> None:
    parameters = sum(math.prod(shape) for shape in weight_shapes(folder).values())
    need = parameters * torch_dtype(dtype).itemsize
    if method == "shards" and not _all_in(folder, dtype):
        need += 4 * parameters  # the base model in float32, and its merge if the saved precision is smaller
        need += 4 * parameters if dtype != "float32" else 0
    parent = next(path for path in out.parents if path.is_dir())
    free = shutil.disk_usage(parent).free
    if need > free:
        raise ModelError(
            f"no disk space for the merged model: it needs {need / GIB:.1f} GiB, and {parent} has {free / GIB:.1f} GiB free",
            "free some, choose a folder on another disk, or save in bfloat16",
        )


@contextlib.contextmanager
def _write_errors(out: str | Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"can't write the merged model {out}: {_first_line(error)}",
            "check free disk space, and merge again",
        ) from error


def _merge_in_memory(base: Path, adapter_folder: str | Path, out: Path, work: Path, dtype: str) -> None:
    """PEFT's merge in float32, rounded once, saved."""
    import torch

    precision = torch_dtype(dtype)
    adapter_to_peft(base, adapter_folder, work / "peft")
    try:
        merged = load_peft(base, work / "peft").merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise _not_finite(_first_line(error)) from error
    with torch.no_grad():
        for parameter in merged.parameters():
            parameter.data = parameter.data.to(precision)
    merged.config.dtype = precision
    with _no_bars():
        merged.save_pretrained(out)


def _not_finite(what: str) -> ModelError:
    return ModelError(
        f"the merged weights are not finite: {what}",
        "the training diverged: choose an earlier checkpoint or a smaller learning rate",
    )


# ---- one file at a time


def _merge_by_shards(base: Path, adapter_folder: str | Path, out: Path, work: Path, dtype: str) -> None:
    """The cookbook's merge. It keeps the precision of the files, so files of another precision are merged in float32."""
    from tinker_cookbook.weights import build_hf_model

    source, limit = base, max(file.stat().st_size for file in shard_files(base))
    if not _all_in(base, dtype):
        source = work / "float32"
        source.mkdir()
        save_shards(_cast(base, "float32"), source, limit)
        write_json(source / "config.json", _config(base))
    with _quiet("tinker_cookbook.weights"), _within_one_file():
        build_hf_model(
            base_model=str(source), adapter_path=str(adapter_folder), output_path=str(work / "merged")
        )
    if source is base or dtype == "float32":
        for file in (work / "merged").iterdir():
            file.rename(out / file.name)
    else:
        save_shards(_cast(work / "merged", dtype), out, limit)
    config = _config(base)
    config.pop("torch_dtype", None)  # its name before transformers 5
    write_json(out / "config.json", {**config, "dtype": dtype})


def _all_in(folder: Path, dtype: str) -> bool:
    code = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}[dtype]
    return all(weight.get_dtype() == code for _, weight in _weights(folder))


def _cast(folder: Path, dtype: str) -> Iterator[tuple[str, Any]]:
    precision = torch_dtype(dtype)
    for name, weight in _weights(folder):
        tensor = weight[...]
        yield name, tensor.to(precision) if tensor.is_floating_point() else tensor


@contextlib.contextmanager
def _within_one_file() -> Iterator[None]:
    """Let the cookbook hold one file at a time, and add each change by blocks of rows, or of experts.

    By itself it keeps a file's last tensor while it reads the next file, and with it the whole file, which is mapped as one;
    and it holds 14 bytes for each number of the weight at work (change, weight and sum in float32, and the sum rounded).
    Measured on 2.3 GB files with weights of 330 million numbers: a peak of 7.3 GB.
    """
    from tinker_cookbook.weights._export import _shard_engine

    load, whole = _shard_engine.load_file, _shard_engine.apply_merge_op

    def by_blocks(tensors: dict[str, Any], op: Any) -> None:
        target = tensors[op.target_key]
        for start, stop in _row_blocks(target.shape):
            _add_rows(target[start:stop], start, op, whole)

    _shard_engine.load_file, _shard_engine.apply_merge_op = (
        functools.partial(load, backend="pread"),
        by_blocks,
    )
    try:
        yield
    finally:
        _shard_engine.load_file, _shard_engine.apply_merge_op = load, whole


def _row_blocks(shape: Iterable[int]) -> list[tuple[int, int]]:
    """A weight's rows (or experts) in runs of about `BLOCK` numbers: `[(start, stop)]`."""
    count, *rest = shape
    step = max(1, BLOCK // max(1, math.prod(rest)))
    return [(start, min(start + step, count)) for start in range(0, count, step)]


def _add_rows(rows: Any, start: int, op: Any, apply: Any) -> None:
    """Add to `rows`, a run of a weight's rows (or experts) from `start` on, their share of the cookbook's operation `op`."""
    first = op.slice_start or 0
    low, high = max(start, first), min(start + len(rows), first + len(op.lora_B))
    if low < high:
        mine = slice(low - first, high - first)
        a = op.lora_A[mine] if op.is_expert_3d else op.lora_A
        part = dataclasses.replace(op, slice_start=None, lora_A=a, lora_B=op.lora_B[mine])
        apply({op.target_key: rows[low - start : high - start]}, part)


def save_shards(tensors: Iterable[tuple[str, Any]], folder: Path, limit: int) -> None:
    """Save tensors as they come, in files of at most `limit` bytes (a larger tensor has its own), with transformers' names and index."""
    from safetensors.torch import save_file

    files: list[list[str]] = []
    pending: dict[str, Any] = {}
    total = size = 0

    def flush() -> None:
        save_file(pending, folder / f"part-{len(files)}", metadata={"format": "pt"})
        files.append(list(pending))
        pending.clear()

    for name, tensor in tensors:
        if pending and size + tensor.nbytes > limit:
            flush()
            size = 0
        pending[name] = tensor
        size, total = size + tensor.nbytes, total + tensor.nbytes
    flush()
    weight_map = {}
    for number, names in enumerate(files):
        file = (
            "model.safetensors"
            if len(files) == 1
            else f"model-{number + 1:05d}-of-{len(files):05d}.safetensors"
        )
        (folder / f"part-{number}").rename(folder / file)
        weight_map.update(dict.fromkeys(names, file))
    if len(files) > 1:
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


# ---- an output layer of its own


def untie(folder: Path, out: Path) -> Path:
    """The same model with an output layer of its own, as a folder of links and one new file.

    The cookbook adds a change of the output layer to the shared weight where embeddings are tied, which changes the input
    side too, so the merged model is not the trained one. From this folder it is.
    """
    from safetensors.torch import save_file

    out.mkdir()
    weight_map = {}
    for file in shard_files(folder):
        (out / f"base-{file.name}").symlink_to(file.resolve())
    for file in sorted(out.glob("base-*")):
        weight_map.update(dict.fromkeys(_names(file), file.name))
    if "lm_head.weight" not in weight_map:
        embedding = next(
            weight[...] for name, weight in _weights(folder) if name.endswith("embed_tokens.weight")
        )
        save_file({"lm_head.weight": embedding}, out / "output-layer.safetensors", metadata={"format": "pt"})
        weight_map["lm_head.weight"] = "output-layer.safetensors"
    write_json(out / INDEX, {"metadata": {}, "weight_map": weight_map})
    write_json(out / "config.json", {**_config(folder), "tie_word_embeddings": False})
    return out


def _names(file: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as handle:
        return list(handle.keys())


# ---- what was saved


def compare_with_plan(base: Path, merged: Path, plan: dict[str, list[Any]], dtype: str) -> tuple[int, float]:
    """Read a merged model back, block by block, and compare it with W + (alpha / r)·B·A of the base model.

    Returns:
        How many weights the adapter changes, and how far rounding to `dtype` moved a weight at most.

    Raises:
        ModelError: a weight is missing, not finite, or not the one that was trained.
    """
    import torch
    from tinker_cookbook.weights._merge import apply_merge_op

    precision = torch_dtype(dtype)
    saved = dict(_weights(merged))
    dropped = {"lm_head.weight"} if _config(base).get("tie_word_embeddings") else set()
    changed, rounding = 0, 0.0
    for name, weight in _weights(base):
        if name not in saved and name not in dropped:
            raise ModelError(
                f"the merged model lacks {name}", "this architecture needs the other method: memory or shards"
            )
        differs = False
        for start, stop in _row_blocks(weight.get_shape()) if name in saved else ():
            before = weight[start:stop].float()
            exact = before.clone()
            for op in plan.get(name, ()):
                _add_rows(exact, start, op, apply_merge_op)
            rounded = exact.to(precision).float()
            if not torch.isfinite(rounded).all():
                raise _not_finite(f"{name}, in {dtype}")
            found = saved[name][start:stop].float()
            if not torch.allclose(
                found, exact, rtol=torch.finfo(precision).eps, atol=1e-5 * float(exact.abs().max())
            ):
                raise ModelError(
                    f"{name} of the merged model is not W + (alpha / r)·B·A: it is up to {float((found - exact).abs().max()):.1e} off",
                    "this architecture needs the other method: memory or shards",
                )
            differs = differs or not torch.equal(exact, before)
            rounding = max(rounding, float((rounded - exact).abs().max()))
        changed += differs
    return changed, rounding
