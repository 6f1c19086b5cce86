"""Which models a Tinker service offers today, what to take in place of one that is gone, and the settings
that the cookbook recommends for a model.

`hosted_models.toml` holds the names that the course uses, and the day they were checked.
"""

from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from helpers.errors import BackendError
from helpers.files import read_toml


@cache
def hosted_models() -> dict[str, Any]:
    """hosted_models.toml: `checked` (a date), two pages, and the models in `use` and in `replacements`."""
    return read_toml(Path(__file__).with_name("hosted_models.toml"))


def hosted_model() -> str:
    """The model that is trained on hosted Tinker where the user names none."""
    return hosted_models()["use"]["default"]


def choose_model(name: str, offered: Mapping[str, Any], service: str, hosted: bool) -> str:
    """The base model to train on a service, compared with what it offers.

    Args:
        name: what the user chose; empty for the only one that it offers, or the course's for hosted Tinker.
        offered: the SDK's `SupportedModel` by name; empty if the service does not say.
        service: what to call it.

    Raises:
        BackendError: it does not offer the model, or does not train it; names those it has, and what to take.
    """
    model = name or (next(iter(offered)) if len(offered) == 1 else hosted_model() if hosted else "")
    trained = [other for other, facts in offered.items() if facts.trainable is not False]
    names = ", ".join(sorted(trained)) or "none"
    if not model:
        raise BackendError(f"{service} trains {names}", "name one of them: -p base_model=…")
    if offered and model not in trained:
        known = "does not train" if model in offered else "does not offer"
        raise BackendError(
            f"{service} {known} the base model {model}: it has {names}", _instead(model, trained)
        )
    return model


def _instead(model: str, offered: list[str]) -> str:
    """What to set in place of a model that is not there."""
    use = replacement(model, offered)
    if not use:
        return f"name one of them: -p base_model={offered[0] if len(offered) == 1 else '…'}"
    settings = {"base_model": use} | recommended(use)
    return (
        f"take the recommended replacement: {' '.join(f'-p {name}={own}' for name, own in settings.items())}"
    )


def replacement(model: str, offered: list[str]) -> str:
    """The recommended replacement of a retired model, or of that one, as far as a service offers it; empty if
    none is known.
    """
    table, seen = hosted_models()["replacements"], {model}
    while (model := table.get(model, "")) and model not in seen:
        if model in offered:
            return model
        seen.add(model)
    return ""


def renderers_of(model: str) -> list[str]:
    """The cookbook's renderers for a model, the recommended one first; empty if it knows no such model."""
    from tinker_cookbook import model_info

    try:
        return model_info.get_recommended_renderer_names(model)
    except (ValueError, KeyError):  # no organisation that it knows, or no such model of it
        return []


def own_renderer(model: str) -> str:
    """That of a model which fits the course's data: its answers have no thinking. Empty if none is known."""
    names = renderers_of(model)
    return next((name for name in names if name.endswith("_disable_thinking")), names[0] if names else "")


def recommended(model: str) -> dict[str, Any]:
    """The cookbook's `prompt_format` and `learning_rate` for a model; without those it does not know."""
    from tinker_cookbook import hyperparam_utils
    from tinker_cookbook.exceptions import ConfigurationError

    renderer = own_renderer(model)
    if not renderer:  # get_lr would ask the model hub for its size
        return {}
    found: dict[str, Any] = {"prompt_format": renderer}
    with suppress(ConfigurationError, NotImplementedError):  # no formula for this family
        found["learning_rate"] = float(f"{hyperparam_utils.get_lr(model):.3g}")
    return found
