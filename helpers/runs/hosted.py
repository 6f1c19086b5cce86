"""The settings of a run on hosted Tinker that the user leaves open: the model from
`helpers/train/hosted_models.toml`, renderer and learning rate from the cookbook.
"""

from typing import Any

from helpers.errors import CourseError
from helpers.runs.settings import settings_of
from helpers.text import plural


def settled(chosen: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Settings of a run, with what is left open on hosted Tinker filled in; on other backends as they are.

    Args:
        chosen: what the user and the run set, by name.

    Returns:
        The settings, and notes on them: a sentence each.

    Raises:
        CourseError: the cookbook has no renderer or no learning rate for the model, and the user set none.
    """
    from helpers.train.backend import HOSTED, choose_backend
    from helpers.train.lineup import hosted_model, hosted_models, recommended, renderers_of

    if choose_backend(settings_of("train", chosen).backend_name)[0] != "hosted":
        return chosen, []
    notes, model = [], chosen.get("base_model") or hosted_model()
    if not chosen.get("base_model"):
        checked = hosted_models()["checked"]
        notes.append(f"base_model={model}, of helpers/train/hosted_models.toml (checked {checked})")
    found = {"base_model": model, "prompt_format": "", "learning_rate": 0.0} | recommended(model) | chosen
    found["base_model"] = model
    if missing := [name for name in ("prompt_format", "learning_rate") if not found[name]]:
        raise CourseError(
            f"the cookbook has no {' and no '.join(missing)} for {model}, a model on {HOSTED}",
            f"set {'both' if len(missing) > 1 else 'it'}: {' '.join(f'-p {name}=…' for name in missing)}",
        )
    names, own = renderers_of(model), found["prompt_format"]
    if "prompt_format" not in chosen:
        notes.append(f"prompt_format={own}, of the cookbook's renderers for it: {', '.join(names)}")
    elif names and own not in (*names, "guide", "template"):
        notes.append(f"prompt_format={own} is none of the cookbook's for {model}: {', '.join(names)}")
    if "learning_rate" not in chosen:
        notes.append(f"learning_rate={found['learning_rate']:g}, the cookbook's for it")
    return found, [*notes, *_trained(model, settings_of("train", found).rank)]


def _trained(model: str, rank: int) -> list[str]:
    """How many numbers a LoRA adapter has, where the cookbook knows."""
    from tinker_cookbook import hyperparam_utils
    from tinker_cookbook.exceptions import ConfigurationError

    try:
        count = hyperparam_utils.get_lora_param_count(model, rank, train_unembed=False)
    except ConfigurationError:
        return []
    return [f"rank={rank}: {plural(count, 'number')} to train (get_lora_param_count)"]
