"""The format of training in a model's folder: the chat template, and the tokens that end an answer.

`transformers`, vLLM and whatever else loads the folder then ask and stop as in training.
"""

from pathlib import Path
from typing import Any

from helpers.files import read_json, write_json, write_text
from helpers.train.chat_template import chat_template, end_tokens
from helpers.weights.base_model import read_config

TEMPLATE = "chat_template.jinja"


def write_chat_template(folder: Path, renderer: Any) -> None:
    """Write `chat_template.jinja`, and take out any other template of that folder.

    Args:
        renderer: from `get_renderer`.
    """
    write_text(folder / TEMPLATE, chat_template(renderer))
    (folder / "chat_template.json").unlink(missing_ok=True)
    config = folder / "tokenizer_config.json"
    if config.is_file() and "chat_template" in (found := read_json(config)):
        write_json(config, {key: value for key, value in found.items() if key != "chat_template"})


def write_end_tokens(folder: Path, renderer: Any) -> None:
    """Add the tokens that end an answer in training to those of `generation_config.json`."""
    path = folder / "generation_config.json"
    config = read_json(path) if path.is_file() else {}
    known = config.get("eos_token_id", read_config(folder).get("eos_token_id"))
    ends = known if isinstance(known, list) else [] if known is None else [known]
    new = [token for token in end_tokens(renderer) if token not in ends]
    if new:
        write_json(path, {**config, "eos_token_id": [*ends, *new]})
