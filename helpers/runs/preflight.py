"""What a run would refuse after minutes of work, refused before it starts.

Only what can be told at once, from the settings and this machine: no server is asked, no model is loaded.
What depends on the data is for `helpers.runs.estimate`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from helpers.errors import BackendError, ModelError
from helpers.limits import MAX_RANK, MAX_SAMPLES
from helpers.local_model import LOCAL_MODEL
from helpers.paths import cache_dir


def check_run(settings: Mapping[str, Any], base_model: str) -> None:
    """Refuse settings that one of the stages can't work with.

    Args:
        settings: of each stage that is to run; each is allowed by itself.
        base_model: of the run; empty for the backend's own.

    Raises:
        CourseError: a stage would refuse them; says which setting and what would do.
    """
    from helpers.train.backend import choose_backend

    names = [own.backend_name for own in settings.values() if hasattr(own, "backend_name")]
    kind = choose_backend(names[0])[0] if names else ""
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
    if "vllm" in settings:
        _check_context(settings["vllm"], _folder(base_model, local=kind == "stub"))


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
    if folder is None:
        return
    from helpers.files import read_json

    config = read_json(folder / "config.json")
    context = config.get("max_position_embeddings")
    if context and not config.get("rope_scaling") and own.max_model_len > context:
        raise ModelError(
            f"setting max_model_len can't be {own.max_model_len}: {folder.name} reads {context} tokens",
            f"lower it: -p max_model_len={context}",
        )
