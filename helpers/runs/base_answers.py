"""Answers of the base model that another run has already: taken over, if they were asked for in the same way.

Runs that differ in training only ask the base model the same questions, and get the same answers. Notebook 03 takes them over
when its parameter `base_run` names a run that has them; `course sweep` sets it.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.errors import RunError
from helpers.files import read_jsonl, write_jsonl
from helpers.runs.run import Run, open_run

ASK_HERE = "leave it empty, and the base model is asked here: -p base_run="


def asked_of_base(run: Run, backend: Any, prompt_format: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """All that decides what the base model answers; notebook 03 keeps it in the manifest, in the results of its stage.

    Args:
        run: with a test set and a trained model.
        backend: from `connect`.
        prompt_format: name of the prompt format.
        parameters: of notebook 03; how many requests are under way at once does not count.
    """
    greedy = parameters["temperature"] == 0
    return {
        "base_model": run.manifest["base_model"],
        "backend": backend.url if backend.kind == "url" else backend.kind,
        "test_set": hashlib.sha256(run.file("split/test_set.json").read_bytes()).hexdigest(),
        "prompt_format": prompt_format,
        "max_tokens": parameters["max_tokens"],
        "temperature": parameters["temperature"],
        "seed": None if greedy else parameters["seed"],
    }


def check_base_run(parameters: dict[str, Any], known: dict[str, dict[str, Any]]) -> None:
    """Refuse, before a run starts, a `base_run` that notebook 03 would refuse, as far as parameters tell.

    Args:
        parameters: what the user and the run set, by name.
        known: each stage's parameters with their defaults.

    Raises:
        RunError: there is no such run, it has no answers, or it asked with other settings.
    """
    if parameters.get("base_run"):
        names = {"prompt_format": "train", "max_tokens": "evaluate", "temperature": "evaluate"}
        _check_same(
            open_run(parameters["base_run"]),
            {name: parameters.get(name, known[stage][name]) for name, stage in names.items()},
        )


def has_base_answers(run: Run) -> bool:
    """Whether another run can take them over from this one."""
    entry = run.manifest["stages"].get("evaluate", {})
    return entry.get("status") == "done" and "base_asked" in entry.get("results", {})


def taken_over(
    base_run: str,
    asked: dict[str, Any],
    test_set: list[dict],
    fmt: Any,
    grader: Callable[[str, str], Any],
    samples_path: str | Path,
) -> dict[str, Any]:
    """The base model's answers of another run, graded again by the grader of today.

    Args:
        base_run: name of that run.
        asked: from `asked_of_base`, of the run that wants them.
        test_set: the problems.
        fmt: the prompt format.
        grader: the task's.
        samples_path: where to write the samples.

    Returns:
        What `evaluate_model` gives, with `tokens` 0, because none were sampled, and `from_run`: the run that asked.

    Raises:
        RunError: there is no such run, it has no answers, or it asked something else.
    """
    from helpers.evaluate.evaluation import score_outputs

    other = open_run(base_run)
    entry = _check_same(other, asked)
    old = read_jsonl(other.file("evaluate/base_samples.jsonl"))
    prompts = [fmt.tokenizer.decode(fmt.prompt_tokens(example)) for example in test_set]
    if [sample.get("prompt") for sample in old] != prompts:
        raise RunError(
            f"base_run={other.name!r}: its evaluate/base_samples.jsonl does not answer the {len(prompts)} prompts of this run",
            ASK_HERE,
        )
    graded = score_outputs(
        test_set,
        [sample["output"] for sample in old],
        grader,
        stop_reasons=[sample["stop_reason"] for sample in old],
    )
    graded["samples"] = [
        sample | {key: new[key] for key in ("problem", "expected", "score", "why", "category", "template")}
        for sample, new in zip(old, graded["samples"])
    ]
    write_jsonl(samples_path, graded["samples"])
    return graded | {"from_run": entry["results"].get("base_from") or other.name}


def _check_same(other: Run, asked: dict[str, Any]) -> dict[str, Any]:
    """The evaluate stage of `other`, if what it asked agrees with all of `asked`."""
    entry = other.stage("evaluate")
    there = entry["results"].get("base_asked")
    if there is None:
        raise RunError(
            f"base_run={other.name!r}: that run kept no note of how it asked the base model", ASK_HERE
        )
    differ = [name for name, value in asked.items() if there.get(name) != value]
    if differ:
        words = ", ".join(
            "another test set"
            if name == "test_set"
            else f"{name} {there.get(name)!r} there, {asked[name]!r} here"
            for name in differ
        )
        raise RunError(
            f"base_run={other.name!r}: the base model was asked something else there: {words}", ASK_HERE
        )
    return entry
