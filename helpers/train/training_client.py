"""Making the training client of a loop: new, from a checkpoint, or as it was when it was interrupted."""

from collections.abc import Mapping
from typing import Any

from helpers.errors import BackendError


def make_training_client(
    backend: Any,
    base_model: str,
    rank: int,
    seed: int,
    *,
    resume: str = "",
    start: str = "",
    metadata: Mapping[str, str],
    advice: str,
    lora: Mapping[str, bool],
) -> Any:
    """A LoRA training client of the SDK.

    Args:
        resume: path of a state to go on from, optimizer included.
        start: path of a state to begin with, if there is nothing to resume; without both, weights are new.
        metadata: of the run. `renderer_name` is the prompt format, which lets an endpoint ask its checkpoints
            in it.
        advice: what to do if the service refuses.
        lora: `train_attn`, `train_mlp`, `train_unembed` of new weights.

    Raises:
        BackendError: the service refuses, or the state is gone.
    """
    import tinker

    service, named = backend.service_client, {"user_metadata": dict(metadata)}
    try:
        if resume:
            return service.create_training_client_from_state_with_optimizer(resume, **named).result()
        if start:
            return service.create_training_client_from_state(start, **named).result()
        return service.create_lora_training_client(base_model, rank=rank, seed=seed, **lora, **named).result()
    except (tinker.TinkerError, ValueError) as error:
        raise BackendError(f"{backend} gave no training client: {error}", advice) from error


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Which settings differ, such as `rank was 8 and is 16`; empty if none does."""

    def value(settings: Mapping[str, Any], name: str) -> str:
        return repr(settings[name]) if name in settings else "not set"

    return ", ".join(
        f"{name} was {value(old, name)} and is {value(new, name)}"
        for name in {**old, **new}
        if name not in old or name not in new or old[name] != new[name]
    )
