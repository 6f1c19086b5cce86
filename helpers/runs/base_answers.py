"""The base model's answers: asked for here, or taken over from another run that asked in the same way.

Runs that differ in training only ask the base model the same questions, and get the same answers. Notebook 03
takes them over when its setting `base_run` names a run that has them; `course sweep` sets it.
"""

import hashlib
import json
from typing import Any

from helpers.errors import RunError
from helpers.evaluate.evaluation import evaluate_formats, score_outputs
from helpers.evaluate.promptings import EXAMPLES, Prompting, base_formats, strongest
from helpers.evaluate.sampling import Sampling
from helpers.evaluate.tasks import Task
from helpers.files import read_jsonl
from helpers.runs.manifest import BaseAsked
from helpers.runs.run import Run, open_run
from helpers.runs.settings import settings_of
from helpers.runs.stage import Stage
from helpers.train.messages import renderer_name
from helpers.train.renderers import prompt_tokens

ASK_HERE = "leave it empty, and the base model is asked here: -p base_run="
SAMPLES, OTHERS = "base_samples.jsonl", "base_other_samples.jsonl"
GRADED = ("problem", "expected", "score", "why", "category", "template")


def base_answers(
    stage: Stage, backend: Any, client: Any, test_set: list[dict[str, Any]], renderer: Any
) -> dict[str, Any]:
    """Score the base model on the test set, greedily or as the stage's settings say, asked in the three ways
    of `helpers.evaluate.promptings`.

    The answers of the strongest go into `base_samples.jsonl`, the others into `base_other_samples.jsonl`.

    Args:
        stage: `evaluate`; its setting `base_run` may name a run to take the answers from.
        backend: from `connect`.
        client: a sampling client of the base model.
        test_set: the problems.
        renderer: the one of training.

    Returns:
        What `evaluate_model` gives for the strongest way, with `prompting` (its name), `promptings` (a
        `Prompting` for each way), `asked` (a `BaseAsked`) and `from_run`, the run that asked; None: this one.

    Raises:
        RunError: `base_run` names a run that has no such answers, or asked something else.
    """
    settings, task = stage.settings, stage.task
    asked, examples = (
        asked_of_base(stage, backend, renderer_name(renderer)),
        stage.examples("train")[:EXAMPLES],
    )
    context = _context(backend, stage.base_model)
    formats, left_out = base_formats(renderer, examples, test_set, settings.max_tokens, context)
    from_run = None
    if settings.base_run:
        results, from_run = taken_over(settings.base_run, asked, test_set, formats, task)
        print(f"answers to {len(test_set)} problems taken over from run {from_run} and graded again")
    else:
        sampling = Sampling(
            settings.max_tokens,
            settings.temperature,
            settings.seed,
            max_in_flight=settings.max_in_flight,
        )
        results = evaluate_formats(
            client, test_set, formats, sampling, task.grader, stage.file(SAMPLES), "Base model"
        )
    best = strongest(task, results)
    _save(stage, results, best)
    promptings = [Prompting.of(name, result, task) for name, result in results.items()]
    promptings += [Prompting(name, len(test_set), left_out=reason) for name, reason in left_out.items()]
    return results[best] | {
        "prompting": best,
        "promptings": promptings,
        "asked": asked,
        "from_run": from_run,
    }


def _save(stage: Stage, results: dict[str, dict[str, Any]], best: str) -> None:
    rows = {
        name: [{"prompting": name} | sample for sample in result["samples"]]
        for name, result in results.items()
    }
    stage.save(SAMPLES, rows.pop(best))
    stage.save(OTHERS, [row for others in rows.values() for row in others])


def _context(backend: Any, base_model: str) -> int | None:
    """The most tokens of prompt and answer together that the service takes; None if it does not say."""
    offered = backend.rest_client.get_server_capabilities().result().supported_models
    return next((model.max_context_length for model in offered if model.model_name == base_model), None)


def asked_of_base(stage: Stage, backend: Any, prompt_format: str) -> BaseAsked:
    """All that decides what the base model answers. How many requests are under way at once does not."""
    settings = stage.settings
    examples = json.dumps(stage.examples("train")[:EXAMPLES], ensure_ascii=False)
    return BaseAsked(
        base_model=stage.base_model,
        backend=backend.url if backend.kind == "url" else backend.kind,
        test_set=hashlib.sha256(stage.run.file("split/test_set.json").read_bytes()).hexdigest(),
        examples=hashlib.sha256(examples.encode("utf-8", "replace")).hexdigest(),
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
    formats: dict[str, Any],
    task: Task,
) -> tuple[dict[str, dict[str, Any]], str]:
    """The base model's answers of another run, graded again by today's grader.

    Args:
        base_run: name of that run.
        asked: of the run that wants them.
        test_set: the problems.
        formats: the renderer of each way of asking, by name.
        task: its grader judges the answers.

    Returns:
        What `evaluate_formats` gives, with `tokens` 0, because none were sampled, and the run that asked.

    Raises:
        RunError: there is no such run, it has no answers, or it asked something else.
    """
    other = open_run(base_run)
    results = _same(other, asked.model_dump())
    rows = [row for name in (SAMPLES, OTHERS) for row in read_jsonl(other.file(f"evaluate/{name}"))]
    old = {name: [row for row in rows if row.get("prompting") == name] for name in formats}
    prompts = {
        name: [renderer.tokenizer.decode(prompt_tokens(example, renderer)) for example in test_set]
        for name, renderer in formats.items()
    }
    count = sum(map(len, prompts.values()))
    there = {name: [row.get("prompt") for row in answers] for name, answers in old.items()}
    if len(rows) != count or there != prompts:
        raise RunError(
            f"base_run={other.name!r}: its {SAMPLES} and {OTHERS} do not answer this run's {count} prompts",
            ASK_HERE,
        )
    graded = {name: _graded(test_set, answers, task) for name, answers in old.items()}
    return graded, results.base_from or other.name


def _graded(test_set: list[dict[str, Any]], old: list[dict[str, Any]], task: Task) -> dict[str, Any]:
    outputs, reasons = zip(*((sample["output"], sample["stop_reason"]) for sample in old), strict=True)
    graded = score_outputs(test_set, list(outputs), task.grader, stop_reasons=list(reasons))
    graded["samples"] = [
        sample | {key: new[key] for key in GRADED} for sample, new in zip(old, graded["samples"], strict=True)
    ]
    return graded


def _same(other: Run, asked: dict[str, Any]) -> Any:
    """The results of the evaluate stage of `other`, if what it asked agrees with all of `asked`."""
    results = other.stage("evaluate").results
    there = results.base_asked.model_dump()
    differ = [name for name, value in asked.items() if there[name] != value]
    if differ:
        hashed = {"test_set": "another test set", "examples": "other examples"}
        words = [hashed.get(name) or f"{name} {there[name]!r} there, {asked[name]!r} here" for name in differ]
        raise RunError(
            f"base_run={other.name!r}: the base model was asked something else there: {', '.join(words)}",
            ASK_HERE,
        )
    return results
