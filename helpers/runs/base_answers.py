"""The base model's answers: asked for here, or taken over from another run that asked in the same way.

Runs that differ in training only ask the base model the same questions, and get the same answers. Notebook 03
takes them over when its setting `base_run` names a run that has them; `course sweep` sets it.
"""

import hashlib
from collections.abc import Callable
from typing import Any

from helpers.errors import RunError
from helpers.evaluate.evaluation import evaluate_model, score_outputs
from helpers.files import read_jsonl
from helpers.runs.manifest import BaseAsked
from helpers.runs.run import Run, open_run
from helpers.runs.settings import settings_of
from helpers.runs.stage import Stage

ASK_HERE = "leave it empty, and the base model is asked here: -p base_run="
SAMPLES = "base_samples.jsonl"
GRADED = ("problem", "expected", "score", "why", "category", "template")


def base_answers(
    stage: Stage, backend: Any, client: Any, test_set: list[dict[str, Any]], fmt: Any
) -> dict[str, Any]:
    """Score the base model on the test set, greedily or as the stage's settings say, into
    `base_samples.jsonl`.

    Args:
        stage: `evaluate`; its setting `base_run` may name a run to take the answers from.
        backend: from `connect`.
        client: a sampling client of the base model.
        test_set: the problems.
        fmt: the prompt format of training.

    Returns:
        What `evaluate_model` gives, with `asked` (a `BaseAsked`) and `from_run`, the run that asked; None:
        this one.

    Raises:
        RunError: `base_run` names a run that has no such answers, or asked something else.
    """
    settings, grader = stage.settings, stage.task.grader
    asked = asked_of_base(stage, backend, fmt.name)
    if settings.base_run:
        base = taken_over(settings.base_run, asked, test_set, fmt, grader)
        stage.save(SAMPLES, base["samples"])
        print(f"{base['total']} answers taken over from run {base['from_run']} and graded again")
        return base | {"asked": asked}
    base = evaluate_model(
        client,
        test_set,
        fmt.tokenizer,
        fmt=fmt,
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        max_in_flight=settings.max_in_flight,
        seed=settings.seed,
        grader=grader,
        samples_path=stage.file(SAMPLES),
        description="Base model",
    )
    return base | {"asked": asked, "from_run": None}


def asked_of_base(stage: Stage, backend: Any, prompt_format: str) -> BaseAsked:
    """All that decides what the base model answers. How many requests are under way at once does not."""
    settings = stage.settings
    return BaseAsked(
        base_model=stage.base_model,
        backend=backend.url if backend.kind == "url" else backend.kind,
        test_set=hashlib.sha256(stage.run.file("split/test_set.json").read_bytes()).hexdigest(),
        prompt_format=prompt_format,
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        seed=None if settings.temperature == 0 else settings.seed,
    )


def check_base_run(chosen: dict[str, Any]) -> None:
    """Refuse, before a run starts, a `base_run` that notebook 03 would refuse, as far as settings tell.

    Args:
        chosen: what the user and the run set, by name.

    Raises:
        RunError: there is no such run, it has no answers, or it asked with other settings.
    """
    if base_run := chosen.get("base_run"):
        evaluate = settings_of("evaluate", chosen)
        asked = {"max_tokens": evaluate.max_tokens, "temperature": evaluate.temperature}
        _same(open_run(base_run), {"prompt_format": settings_of("train", chosen).prompt_format, **asked})


def has_base_answers(run: Run) -> bool:
    """Whether another run can take them over from this one."""
    return run.manifest.stages.is_done("evaluate")


def taken_over(
    base_run: str,
    asked: BaseAsked,
    test_set: list[dict[str, Any]],
    fmt: Any,
    grader: Callable[[str, str], Any],
) -> dict[str, Any]:
    """The base model's answers of another run, graded again by today's grader.

    Args:
        base_run: name of that run.
        asked: of the run that wants them.
        test_set: the problems.
        fmt: the prompt format.
        grader: the task's.

    Returns:
        What `evaluate_model` gives, with `tokens` 0, because none were sampled, and `from_run`: the run that
        asked.

    Raises:
        RunError: there is no such run, it has no answers, or it asked something else.
    """
    other = open_run(base_run)
    results = _same(other, asked.model_dump())
    old = read_jsonl(other.file(f"evaluate/{SAMPLES}"))
    prompts = [fmt.tokenizer.decode(fmt.prompt_tokens(example)) for example in test_set]
    if [sample.get("prompt") for sample in old] != prompts:
        raise RunError(
            f"base_run={other.name!r}: its {SAMPLES} does not answer this run's {len(prompts)} prompts",
            ASK_HERE,
        )
    outputs, reasons = zip(*((sample["output"], sample["stop_reason"]) for sample in old), strict=True)
    graded = score_outputs(test_set, list(outputs), grader, stop_reasons=list(reasons))
    graded["samples"] = [
        sample | {key: new[key] for key in GRADED} for sample, new in zip(old, graded["samples"], strict=True)
    ]
    return graded | {"from_run": results.base_from or other.name}


def _same(other: Run, asked: dict[str, Any]) -> Any:
    """The results of the evaluate stage of `other`, if what it asked agrees with all of `asked`."""
    results = other.stage("evaluate").results
    there = results.base_asked.model_dump()
    differ = [name for name, value in asked.items() if there[name] != value]
    if differ:
        words = [
            f"{name} {there[name]!r} there, {asked[name]!r} here" for name in differ if name != "test_set"
        ]
        words += ["another test set"] if "test_set" in differ else []
        raise RunError(
            f"base_run={other.name!r}: the base model was asked something else there: {', '.join(words)}",
            ASK_HERE,
        )
    return results
