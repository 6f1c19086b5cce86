"""A model's folder: where it is, what its files hold, and the model itself, loaded.

Also what `merge_adapter` wrote: a merged model is a base model to whoever loads it.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.errors import CourseError, ModelError, RunError
from helpers.files import read_json, write_json
from helpers.model_folder import check_no_adapter

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

DTYPES = ("float32", "bfloat16", "float16")
INDEX = "model.safetensors.index.json"


def cause(error: Exception) -> str:
    """One line on why something failed."""
    if isinstance(error, CourseError):
        return error.what
    return (str(error).strip() or type(error).__name__).split("\n")[0][:300]


def base_advice(base_model: str | Path) -> str:
    """What to do when a base model, a path or a hub name, can't be had."""
    if str(base_model).startswith(("/", "~", ".")):
        return "run notebook 00_start_here, which makes the local base model, or correct the path"
    return "check the name and the connection to the model hub, or use a local folder"


def torch_dtype(name: str) -> "torch.dtype":
    """The torch dtype called `name`: float32, bfloat16 or float16.

    Raises:
        ModelError: another name.
    """
    import torch

    if name not in DTYPES:
        raise ModelError(f"no precision {name!r}", f"use one of {', '.join(DTYPES)}")
    return getattr(torch, name)


def load_base(base_model: str | Path, dtype: str = "float32") -> "PreTrainedModel":
    """The base model from a folder or a hub name, in evaluation mode, on the CPU.

    Raises:
        ModelError: it is not there, not whole, or the hub can't be reached.
    """
    from transformers import AutoModelForCausalLM

    precision = torch_dtype(dtype)
    try:
        with no_bars():
            model = AutoModelForCausalLM.from_pretrained(
                str(base_model), dtype=precision, trust_remote_code=False
            )
            return model.eval()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"can't load the base model {base_model}: {cause(error)}", base_advice(base_model)
        ) from error


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """Hide the bars that transformers draws for every load and save.

    They would stand in the notebook's outputs with a new time for each run.
    """
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.enable_progress_bar()


def base_folder(base_model: str | Path) -> Path:
    """The folder of a base model: itself, or the hub's local copy of a name (downloaded if need be).

    Raises:
        ModelError: there is no such folder or model, it has no config.json or no safetensors weights, or an
            adapter beside them.
    """
    folder = Path(base_model).expanduser()
    if not folder.is_dir():
        if str(base_model).startswith(("/", "~", ".")):
            raise ModelError(f"there is no base model at {base_model}", base_advice(base_model))
        folder = _folder_from_hub(str(base_model))
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder} is not a whole model: config.json or *.safetensors missing", base_advice(folder)
        )
    check_no_adapter(folder)
    return folder


def _folder_from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:
        raise ModelError(f"can't get the base model {name}: {cause(error)}", base_advice(name)) from error


def read_config(folder: str | Path) -> dict[str, Any]:
    """A model's `config.json`.

    Raises:
        ModelError: it is missing or damaged.
    """
    try:
        return read_json(Path(folder) / "config.json")
    except RunError as error:
        raise ModelError(error.what, base_advice(folder)) from error


def shard_files(folder: str | Path) -> list[Path]:
    """The files that hold a model's weights.

    These are the ones that its index names, or else `model.safetensors`.

    Raises:
        ModelError: the index is damaged, or names a file that is not there; or there is neither.
    """
    folder = Path(folder)
    if not (folder / INDEX).is_file():
        whole = folder / "model.safetensors"
        if not whole.is_file():
            raise ModelError(f"{folder} has neither {INDEX} nor {whole.name}", "download the model again")
        return [whole]
    try:
        names = sorted(set(read_json(folder / INDEX)["weight_map"].values()))
    except (RunError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{folder / INDEX} is damaged: {cause(error)}", "make or download the model again"
        ) from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"{folder} lacks {len(missing)} of its {len(names)} weight files, {missing[0]} among them",
            "download the model again; a second download goes on where the first stopped",
        )
    return [folder / name for name in names]


def weight_slices(folder: str | Path) -> Iterator[tuple[str, Any]]:
    """Name and safetensors slice of each weight in a model folder, file by file.

    A slice reads only what is taken from it, as `backend="pread"` does; with mmap, what was read once would
    count as this process's memory. Slices stay good after the iterator has ended.

    Raises:
        ModelError: a file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    for file in shard_files(folder):
        try:
            with safe_open(file, framework="pt", backend="pread") as handle:
                for name in handle.keys():  # noqa: SIM118  (a handle can't be iterated)
                    yield name, handle.get_slice(name)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file} is damaged: {error}", "make or download the model again") from error


def weight_shapes(folder: str | Path) -> dict[str, tuple[int, ...]]:
    """Shape of each weight in a model folder, from the file headers alone.

    Raises:
        ModelError: a file is missing or damaged.
    """
    return {name: tuple(weight.get_shape()) for name, weight in weight_slices(folder)}


def is_tied(folder: str | Path) -> bool:
    """Whether a model's output layer is its input embedding.

    Raises:
        ModelError: a weight file is missing or damaged.
    """
    return "lm_head.weight" not in weight_shapes(folder) or bool(
        read_config(folder).get("tie_word_embeddings", False)
    )


def untie(folder: Path, out: Path) -> Path:
    """The same model with an output layer of its own, as a folder of links and one new file.

    Where embeddings are tied, the cookbook adds a change of the output layer to the shared weight. That
    changes the input side too, so the merged model is not the trained one. From this folder it is.

    Returns:
        `out`, which must not exist yet.
    """
    from safetensors.torch import save_file

    out.mkdir()
    for file in shard_files(folder):
        (out / f"base-{file.name}").symlink_to(file.resolve())
    weight_map = {name: file.name for file in sorted(out.glob("base-*")) for name in _names(file)}
    if "lm_head.weight" not in weight_map:
        embedding = next(
            weight[...] for name, weight in weight_slices(folder) if name.endswith("embed_tokens.weight")
        )
        save_file({"lm_head.weight": embedding}, out / "output-layer.safetensors", metadata={"format": "pt"})
        weight_map["lm_head.weight"] = "output-layer.safetensors"
    write_json(out / INDEX, {"metadata": {}, "weight_map": weight_map})
    write_json(out / "config.json", {**read_config(folder), "tie_word_embeddings": False})
    return out


def _names(file: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as handle:
        return list(handle.keys())
