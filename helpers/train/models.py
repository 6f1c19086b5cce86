"""Which base model a name means, and its tokenizer."""

import json
import os
import re
from pathlib import Path
from typing import Any

from helpers import net
from helpers.errors import ModelError
from helpers.local_model import local_base_model
from helpers.model_folder import check_model_folder, check_path
from helpers.train.lineup import hosted_model


def resolve_base_model(name: str) -> str:
    """The base model that a parameter names, as `base_model` of the Tinker SDK takes it.

    Args:
        name: empty for the local base model, a local folder, or a name on the hub: `OWNER/NAME`.

    Returns:
        The absolute path of a checked folder, or the hub name as it is.

    Raises:
        ModelError: `name` is neither, or the folder is no model.
    """
    name = str(name).strip()
    if not name:
        return str(local_base_model())
    if os.path.isdir(os.path.expanduser(name)):
        path = os.path.abspath(os.path.expanduser(name))
        check_path(path)
        check_model_folder(path)
        return path
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+(:[\w.:-]+)?", name):
        return name
    raise ModelError(
        f"{name!r} is neither a model folder nor a name like {hosted_model()}",
        "check the spelling, or leave the base model empty to use the local one",
    )


def _has_plain_tokenizer(folder: Path) -> bool:
    """True if the tokenizer is all in tokenizer.json. AutoTokenizer imports torch and scikit-learn to find
    out: 5 s.
    """
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        return (
            config.get("tokenizer_class") == "TokenizersBackend"
            and "auto_map" not in config
            and (folder / "tokenizer.json").is_file()
        )
    except (OSError, ValueError, AttributeError):
        return False  # AutoTokenizer says what is wrong


def load_tokenizer(name_or_path: str | Path = "") -> Any:
    """The tokenizer of a model folder, or of a hub name where the hub can be reached.

    Args:
        name_or_path: as for `resolve_base_model`; empty for the local base model.

    Returns:
        A transformers tokenizer.

    Raises:
        ModelError: it can't be found, downloaded or read.
    """
    name = resolve_base_model(str(name_or_path))
    local = os.path.isdir(name)
    problem = None if local else net.hub_problem()
    try:
        if local and _has_plain_tokenizer(Path(name)):
            from transformers import PreTrainedTokenizerFast

            return PreTrainedTokenizerFast.from_pretrained(name)
        from transformers import AutoTokenizer

        # Without a hub, what was downloaded before still serves, and asking the hub in vain would take 50 s.
        return AutoTokenizer.from_pretrained(
            name if local else name.split(":")[0],
            trust_remote_code=False,
            **({"local_files_only": True} if problem else {}),
        )
    except Exception as error:  # transformers raises many kinds for one broken file
        if local:
            raise ModelError(
                f"the tokenizer in {name} can't be read: {error}", "download or copy the model again"
            ) from error
        raise ModelError(
            f"the tokenizer of {name} can't be fetched from the model hub: "
            f"{problem or (str(error) or type(error).__name__).splitlines()[0]}",
            "check the name and the network (and HF_TOKEN for gated models), or use a local model folder",
        ) from error
