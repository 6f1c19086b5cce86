"""What the runs of a sweep have in common, and so do once: the split, and the answers of the base model."""

from collections.abc import Callable, Iterable
from typing import Any

from helpers.runs.sweep.plan import Sweep


def split_key(sweep: Sweep, name: str) -> Any:
    """What decides a run's split: runs with equal keys share it."""
    return sweep.stage_settings(name, "split")["split"]


def base_key(sweep: Sweep, name: str) -> Any:
    """What decides the base model's answers.

    None if the sweep does not ask it, or the user named a run that has them.
    """
    if "evaluate" not in sweep.stages or sweep.settings[name].get("base_run"):
        return None
    stages = sweep.stage_settings(name, "evaluate")
    train, evaluate = stages["train"], stages["evaluate"]
    return (
        split_key(sweep, name),
        (train.base_model, train.prompt_format),
        (evaluate.backend_name, evaluate.max_tokens, evaluate.temperature, evaluate.seed),
    )


def leaders(names: Iterable[str], key: Callable[[str], Any]) -> dict[str, str | None]:
    """For each run the first one with the same key, which does for all of them what they share.

    None for a run whose key is None.
    """
    first: list[tuple[Any, str]] = []
    found: dict[str, str | None] = {}
    for name in names:
        own = key(name)
        leader = next((other for known, other in first if known == own), None)
        if leader is None and own is not None:
            first.append((own, name))
        found[name] = None if own is None else leader or name
    return found
