"""Tasks for Inspect: those of `inspect_evals` by name, and our own data as one.

    inspect eval helpers/evaluate/inspect_tasks.py@own_data -T data=test_set.json --model …   # from a shell

A task's prompts, examples and scorer are those of `inspect_evals`. Only its records may come from elsewhere:
from a file that its authors publish, for machines that can't reach the model hub.
"""

import difflib
import importlib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datasets.exceptions import DatasetsError
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    Content,
    ContentReasoning,
    ContentText,
)
from inspect_ai.scorer import CORRECT, INCORRECT, Score, accuracy, scorer, stderr
from inspect_ai.solver import generate

from helpers.data.conversation import Message, conversation
from helpers.data.records import load_json_files
from helpers.errors import DataError
from helpers.evaluate.benchmark_files import BENCHMARKS, local_records
from helpers.evaluate.grading import check_final_answer
from helpers.evaluate.patches import records_from
from helpers.train.guide import before_input

Grader = Callable[[str, str], Any]


@scorer(metrics=[accuracy(), stderr()])
def final_answer_scorer(grader: Grader = check_final_answer):
    """Inspect's scorer with a grader of the course: by default the final answer, compared by value."""

    async def score(state, target) -> Score:
        verdict = grader(state.output.completion, target.text)
        return Score(
            value=CORRECT if verdict else INCORRECT, answer=verdict.found or "", explanation=verdict.why
        )

    return score


@task
def own_data(
    data: str | Path | Sequence[dict] = "runs/latest/split/test_set.json",
    prompt_format: str = "guide",
    grader: Grader = check_final_answer,
) -> Task:
    """The course's records as an Inspect task, judged by final answer, or by another grader.

    Args:
        data: a file of any form that `load_json_files` reads, or records.
        prompt_format: of the renderer that asks; it decides how an `input` follows its instruction.
        grader: takes an answer and a reference, gives a verdict; `stage.task.grader` is that of a run.

    Raises:
        DataError: the file is not usable, there are no records, or one has tools.
    """
    from_file = isinstance(data, (str, Path))
    records = load_json_files([data]) if from_file else list(data)
    if not records:
        raise DataError("there are no records to ask about", "give a test set that has some")
    samples = [
        Sample(
            id=number,
            input=_asked(row, before_input(prompt_format)),
            target=str(row.get("answer") or row["output"]),
            metadata={"category": row.get("category")},
        )
        for number, row in enumerate(records)
    ]
    name = Path(data).name if from_file else "own_data"
    return Task(
        name="own_data",
        dataset=MemoryDataset(samples, name=name),
        solver=[generate()],
        scorer=final_answer_scorer(grader),
    )


def _asked(record: dict[str, Any], between: str) -> list[ChatMessage]:
    """The turns of a record before its last answer, for Inspect.

    Raises:
        DataError: it has tools.
    """
    kinds = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}
    turns = conversation(record, between)[:-1]
    if record.get("tools") or any(turn["role"] == "tool" or turn.get("tool_calls") for turn in turns):
        raise DataError(
            f"{record['instruction'][:60]!r} has tools, which Inspect would declare in words of its own",
            "score such records with evaluate_model",
        )
    return [kinds[turn["role"]](content=_parts(turn)) for turn in turns]


def _parts(turn: Message) -> str | list[Content]:
    """The text of a turn, after its thinking if it has any."""
    thoughts = turn.get("reasoning_content")
    text = turn["content"]
    return [ContentReasoning(reasoning=thoughts), ContentText(text=text)] if thoughts else text


def make_task(benchmark: str, dataset_path: str | Path | None, task_args: dict[str, Any]) -> Task:
    """A task of `inspect_evals` by its name.

    Args:
        dataset_path: the benchmark's own published file; None to read from the hub.
        task_args: arguments of the task, as `{"fewshot": 5}` for GSM8K.

    Raises:
        DataError: the name, an argument or the file is not usable.
    """
    if benchmark not in BENCHMARKS:
        if dataset_path is not None:
            raise DataError(
                f"dataset_path can't be used with {benchmark!r}", f"it is for {', '.join(BENCHMARKS)}"
            )
        remedy = "this task reads from the hub: run it where the hub can be reached"
        return _call(_registered_task(benchmark), benchmark, task_args, remedy)
    known = BENCHMARKS[benchmark]
    records = None if dataset_path is None else local_records(benchmark, dataset_path)
    if records and known.train_file and "train" not in records and task_args.get("fewshot") != 0:
        task_args = _without_examples(known.train_file, known.where, dataset_path, task_args)
    module = importlib.import_module(known.module)
    remedy = f"without the hub, give its published file as dataset_path=…: {known.where}"
    with records_from(module, records):
        return _call(getattr(module, known.task), benchmark, task_args, remedy)


def _without_examples(
    train_file: str, where: str, dataset_path: str | Path | None, task_args: dict[str, Any]
) -> dict[str, Any]:
    if task_args.get("fewshot"):
        raise DataError(
            f"fewshot={task_args['fewshot']} needs {train_file} beside {dataset_path}", f"get it: {where}"
        )
    print(
        f"no {train_file} beside {dataset_path}: the prompt holds no worked examples (fewshot=0), "
        "which published scores have"
    )
    return task_args | {"fewshot": 0}


def _call(function: Callable[..., Task], benchmark: str, task_args: dict[str, Any], remedy: str) -> Task:
    try:
        inspect.signature(function).bind(**task_args)
    except TypeError as error:
        takes = ", ".join(inspect.signature(function).parameters)
        raise DataError(f"{benchmark}: {error}", f"task_args may hold {takes}") from error
    try:
        return function(**task_args)
    except (OSError, LookupError, ValueError, DatasetsError) as error:
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(f"{benchmark}'s records can't be read: {cause}", remedy) from error


def _registered_task(name: str) -> Callable[..., Task]:
    """Any other task of `inspect_evals`, by its name there; it reads from where it wants."""
    from inspect_evals import _registry

    tasks: dict[str, Callable[..., Any]] = {
        key: value
        for key, value in vars(_registry).items()
        if callable(value) and hasattr(value, "__registry_info__")
    }
    if name not in tasks:
        near = difflib.get_close_matches(name, {*BENCHMARKS, *tasks}, n=3)
        known = f"use {', '.join(BENCHMARKS)}, or the name of a task of inspect_evals"
        raise DataError(
            f"there is no benchmark {name!r}", f"did you mean {' or '.join(near)}?" if near else known
        )
    return tasks[name]
