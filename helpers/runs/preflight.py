"""What a run would refuse after minutes of work, refused before it starts: `course run`, its dry run and
sweeps call the same two functions. No model is loaded, and only hosted Tinker and servers at a URL are asked.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from helpers.errors import BackendError, DataError, ModelError
from helpers.limits import MAX_RANK, MAX_SAMPLES
from helpers.local_model import LOCAL_MODEL
from helpers.paths import cache_dir
from helpers.runs.estimate import Counted, stage_work
from helpers.train.backend import HOSTED, choose_backend, served_models
from helpers.train.keys import HOSTED_KEY
from helpers.train.lineup import choose_model

ASKING = (
    "train",
    "evaluate",
    "merge",
)  # the stages that ask a service for the base model or a checkpoint of it


def check_run(
    settings: Mapping[str, Any], base_model: str, ask: Callable[[str], dict[str, Any]] = served_models
) -> int | None:
    """Refuse settings that one of the stages can't work with.

    Args:
        settings: of each stage that is to run; each is allowed by itself.
        base_model: of the run; empty for the backend's own.
        ask: gives the models that a backend offers, as `served_models` does.

    Returns:
        The context of the base model, in tokens of prompt and answer together; None if that is not known.

    Raises:
        CourseError: a stage would refuse them; says which setting and what would do.
    """
    backend = backend_of(settings)
    kind = choose_backend(backend)[0] if backend else ""
    if kind == "stub":
        _check_stub(settings)
    if "split" in settings:
        _check_format(settings["split"], local=True)  # notebook 01 asks no backend for the model
    if "train" in settings:
        _check_format(settings["train"], local=kind == "stub")
    if "evaluate" in settings and settings["evaluate"].benchmark_file:
        from helpers.evaluate.benchmark_files import local_records

        local_records("gsm8k", settings["evaluate"].benchmark_file)
    if "export" in settings and (path := settings["export"].checkpoint_path):
        from helpers.weights.download import checkpoint_kind

        checkpoint_kind(path)
    folder = _folder(base_model, local=kind == "stub")
    if "vllm" in settings:
        _check_context(settings["vllm"], folder)
    if kind in ("", "stub"):
        return _context(folder)
    return _served_context(settings, backend, base_model, ask)


def backend_of(settings: Mapping[str, Any]) -> str:
    """The backend's name in the settings of a run's stages; empty if none of them uses one."""
    return next((own.backend_name for own in settings.values() if hasattr(own, "backend_name")), "")


def no_key(backend: str) -> bool:
    """Whether a run on this backend lacks the key for hosted Tinker."""
    return bool(backend) and choose_backend(backend)[0] == "hosted" and not os.environ.get(HOSTED_KEY)


def _served_context(
    settings: Mapping[str, Any], backend: str, base_model: str, ask: Callable[[str], dict[str, Any]]
) -> int | None:
    """Refuse a base model that the service does not offer. Without a key it can't be asked."""
    if no_key(backend) or not any(stage in settings for stage in ASKING):
        return None
    offered, hosted = ask(backend), choose_backend(backend)[0] == "hosted"
    try:
        model = choose_model(base_model, offered, HOSTED if hosted else backend, hosted)
    except BackendError as error:
        if "train" not in settings:
            error.fix = "what was trained can still be exported: --from export --until export"
        raise
    return offered[model].max_context_length if model in offered else None


def check_data(settings: Mapping[str, Any], counted: Counted, context: int | None) -> None:
    """Refuse data that the settings leave no room for, and more steps than can be planned.

    Args:
        settings: of each stage that is to run.
        counted: records and tokens of each part of the split.
        context: from `check_run`.

    Raises:
        DataError: says which setting, and what would do.
    """
    parts, exact = counted.parts, counted.by != "characters"
    if "train" in settings and exact:
        longest = max(parts["train"].longest, parts["validation"].longest)
        _check_length(longest, settings["train"].max_length, context)
    asked = {"train": "validation", "evaluate": "test", "merge": "test", "vllm": "test"}
    rooms = [
        Room(settings[stage], parts[part].longest_prompt if exact else 1, exact, context)
        for stage, part in asked.items()
        if stage in settings
    ]
    _check_room(min(rooms, key=lambda room: room.left, default=None))
    for stage in settings:
        stage_work(stage, settings, parts)


def _check_length(longest: int, most: int, context: int | None) -> None:
    """Refuse examples that training would refuse."""
    if context and longest > context:
        raise DataError(
            f"the longest example has {longest} tokens, and the base model reads {context}",
            "leave long examples out of the data, or train another model: -p base_model=…",
        )
    if longest > most:
        raise DataError(
            f"the longest example has {longest} tokens, over max_length={most}",
            f"raise it: -p max_length={longest}, or leave long examples out of the data",
        )


@dataclass(frozen=True)
class Room:
    """What a stage has for a prompt and an answer.

    Attributes:
        own: the stage's settings.
        prompt: tokens of its longest prompt; at least 1 where they could only be estimated.
        exact: whether they were counted.
        context: of the base model; None if unknown.
    """

    own: Any
    prompt: int
    exact: bool
    context: int | None

    @property
    def window(self) -> int | None:
        """The length that the user gave vLLM."""
        return getattr(self.own, "max_model_len", None)

    @property
    def most(self) -> float:
        return min(filter(None, (self.window, self.context)), default=inf)

    @property
    def left(self) -> float:
        return self.most - self.prompt - self.own.max_tokens


def _check_room(room: Room | None) -> None:
    """Refuse limits that leave no room for the longest prompt and an answer."""
    if room is None or room.left >= 0:
        return
    asked, narrow = room.own.max_tokens, room.most == room.window
    limit = (
        f"max_model_len={room.window} of notebook 06" if narrow else f"the base model's context, {room.most}"
    )
    fixes = []
    if room.most > room.prompt:
        fixes.append(f"lower max_tokens: -p max_tokens={room.most - room.prompt if room.exact else '…'}")
    if narrow and room.prompt + asked <= (room.context or inf):
        fixes.append(f"raise max_model_len: -p max_model_len={room.prompt + asked if room.exact else '…'}")
    raise DataError(
        f"the longest prompt has {room.prompt} tokens; with max_tokens={asked} it exceeds {limit}"
        if room.exact
        else f"max_tokens={asked} leaves no room for a prompt in {limit}",
        ", or ".join(fixes) or "leave long prompts out of the data",
    )


def _check_stub(settings: Mapping[str, Any]) -> None:
    for stage, name, most in (("train", "rank", MAX_RANK), ("evaluate", "samples_each", MAX_SAMPLES)):
        value = getattr(settings.get(stage), name, 0)
        if value > most:
            raise BackendError(
                f"setting {name} can't be {value}: the stub takes at most {most}",
                f"lower it: -p {name}={most}, or use another backend",
            )
    if "train" in settings and (model := settings["train"].base_model):
        from helpers.train.backend import running_stub
        from helpers.train.models import resolve_base_model

        server = running_stub()
        offered = server["base_models"] if server else [str(_local_model())]
        if resolve_base_model(model) not in offered:
            raise BackendError(
                f"the stub does not offer the base model {model}: it has {', '.join(offered)}",
                "leave base_model empty, or name a backend that has it: --backend hosted",
            )


def _local_model() -> Path:
    return cache_dir() / "models" / LOCAL_MODEL


def _folder(base_model: str, local: bool) -> Path | None:
    """The folder of a model; None if it is not on this machine.

    Args:
        base_model: as in the settings.
        local: whether an empty name means the local base model.
    """
    if not base_model and not local:
        return None
    folder = Path(base_model).expanduser() if base_model else _local_model()
    return folder if (folder / "config.json").is_file() else None


def _check_format(own: Any, local: bool) -> None:
    """The prompt format exists, and the model's tokenizer can write it, where that is on this machine."""
    if own.prompt_format == "guide":
        return
    from helpers.train.renderers import check_renderer_name, get_renderer

    check_renderer_name(own.prompt_format)
    if folder := _folder(own.base_model, local):
        get_renderer(own.prompt_format, str(folder))


def _check_context(own: Any, folder: Path | None) -> None:
    """vLLM is not asked for more than the model can read."""
    context = _context(folder)
    if folder and context and own.max_model_len > context:
        raise ModelError(
            f"setting max_model_len can't be {own.max_model_len}: {folder.name} reads {context} tokens",
            f"lower it: -p max_model_len={context}",
        )


def _context(folder: Path | None) -> int | None:
    """How many tokens a model reads; None if that is not known, or can be stretched."""
    from helpers.files import read_json

    config = read_json(folder / "config.json") if folder else {}
    return None if config.get("rope_scaling") else config.get("max_position_embeddings")
