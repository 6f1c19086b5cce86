"""What a model folder must hold before anything loads it, and which paths the Tinker SDK would misread."""

import json
from pathlib import Path

from helpers.errors import ModelError


def check_path(path: str | Path) -> None:
    """Refuse a local path that the Tinker SDK would misread.

    The SDK cuts model names at ":" and takes a name with exactly two slashes for ORGANISATION/MODEL/VARIANT.

    Raises:
        ModelError: the path holds ":" or lies too near the root folder.
    """
    if ":" in str(path):
        raise ModelError(
            f"the model folder {path} has ':' in its path, where the Tinker SDK cuts model names",
            "move or rename the folder",
        )
    if str(path).count("/") < 3:
        raise ModelError(
            f"the model folder {path} lies too near the root: the Tinker SDK needs three slashes in its path",
            "move it one folder deeper",
        )


def check_model_folder(path: str | Path) -> None:
    """Check that `path` holds a model that transformers can load: configuration, safetensors weights,
    tokenizer.

    Only headers are read, so it takes milliseconds whatever the model's size.

    Raises:
        ModelError: what is missing or damaged, and what to do.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ModelError(
            f"there is no model folder {folder}",
            "check the path, or leave the base model empty to use the local one",
        )
    names = {entry.name for entry in folder.iterdir()}
    _check_config(folder, names)
    _check_weights(folder, names)
    if not names & {"tokenizer.json", "tokenizer.model", "vocab.json", "tiktoken.model"}:
        raise ModelError(
            f"{folder} has no tokenizer (tokenizer.json or tokenizer.model)",
            "copy the tokenizer files of the base model into it",
        )


def check_no_adapter(folder: Path) -> None:
    """Refuse a model folder with a LoRA adapter in it. transformers would load both, and others the model
    alone: two models by one name.

    Raises:
        ModelError: there is one.
    """
    if (folder / "config.json").is_file() and (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{folder} holds a model and a LoRA adapter, which not all programs would load",
            "move adapter_config.json and adapter_model.safetensors to a folder of their own",
        )


def _check_config(folder: Path, names: set[str]) -> None:
    check_no_adapter(folder)
    if "config.json" not in names:
        if "adapter_config.json" in names:
            raise ModelError(
                f"{folder} is a LoRA adapter, not a base model",
                "merge it first (notebook 05_merge), or name the model it was trained on",
            )
        raise ModelError(
            f"{folder} is no model folder: it has no config.json",
            "give the folder that holds config.json and the weights",
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{folder / 'config.json'} can't be read: {error}", "download or copy the model again"
        ) from error
    if not isinstance(config, dict) or not config.get("model_type"):
        raise ModelError(f"{folder / 'config.json'} names no model_type", "download or copy the model again")


def _check_weights(folder: Path, names: set[str]) -> None:
    index = folder / "model.safetensors.index.json"
    if index.name in names:
        try:
            files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, RecursionError, KeyError, AttributeError, TypeError) as error:
            raise ModelError(f"{index} can't be read: {error}", "download or copy the model again") from error
    else:
        files = sorted(name for name in names if name == "model.safetensors")
    if not files:
        other = sorted(name for name in names if name.endswith((".bin", ".gguf", ".pt", ".pth")))
        found = f"; it has {other[0]}, which the course does not load" if other else ""
        raise ModelError(f"{folder} has no model.safetensors{found}", "get the model in safetensors form")
    for name in files:
        if name not in names:
            raise ModelError(
                f"{folder} lacks {name}, which its index names", "download or copy the model again"
            )
        if not _safetensors_whole(folder / name):
            raise ModelError(
                f"{folder / name} is damaged or was cut short", "download or copy the model again"
            )


def _safetensors_whole(path: Path) -> bool:
    """True if the header can be read and the file is as long as the header says."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= 100 << 20:
                return False
            header = json.loads(file.read(length))
        end = max(
            (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0
        )
        return end > 0 and path.stat().st_size == 8 + length + end
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError, IndexError):
        return False
