"""The base model's answers of another run: taken over and graded again, or refused."""

from types import SimpleNamespace
from typing import Any

import pytest
from commands import assert_one_message, course, tree
from runs_for_tests import finish_stage, make_run

from helpers.errors import RunError
from helpers.evaluate.grading import check_final_answer
from helpers.files import write_json, write_jsonl
from helpers.runs.base_answers import asked_of_base, taken_over
from helpers.runs.manifest import BaseAsked
from helpers.runs.run import Run
from helpers.runs.settings import settings_of
from helpers.runs.stage import Stage

pytestmark = pytest.mark.usefixtures("folder")


class Letters:
    """A tokenizer of one token a letter, as far as prompts need it."""

    def decode(self, tokens: list[str]) -> str:
        return "".join(tokens)


class Format:
    tokenizer, name = Letters(), "guide"

    def prompt_tokens(self, example: dict[str, Any]) -> list[str]:
        return list(example["instruction"])


TEST_SET = [
    {
        "instruction": f"What is {n} + {n}?",
        "input": "",
        "output": f"Final answer: {2 * n}",
        "answer": str(2 * n),
    }
    for n in range(3)
]
BACKEND = SimpleNamespace(kind="stub", url="http://127.0.0.1:1")


def asked_by(run: Run, **settings: Any) -> BaseAsked:
    return asked_of_base(Stage(run, "evaluate", settings_of("evaluate", settings)), BACKEND, "guide")


def asking_run(name: str, test_set: list[dict[str, Any]] = TEST_SET, **settings: Any) -> Run:
    """A run that asked the base model; it got the first one right, and the file says that it got none."""
    run = make_run(name, done=("split", "train"))
    write_json(run.file("split/test_set.json"), test_set)
    finish_stage(run, "evaluate", results={"base_asked": asked_by(run, **settings)}, **settings)
    samples = [
        {
            "index": i,
            "prompt": row["instruction"],
            "output": "Final answer: 0",
            "score": False,
            "stop_reason": "stop",
            "tokens": 9,
            "mean_logprob": -1,
        }
        for i, row in enumerate(test_set)
    ]
    write_jsonl(run.file("evaluate/base_samples.jsonl"), samples)
    return run


def test_answers_are_taken_over_and_graded_again():
    run = asking_run("one")
    asked = asked_by(run, max_in_flight=8, seed=7)  # neither matters to greedy answers
    found = taken_over("one", asked, TEST_SET, Format(), check_final_answer)
    assert (found["correct"], found["total"], found["tokens"], found["from_run"]) == (1, 3, 0, "one")
    first = found["samples"][0]
    assert first["score"] and first["output"] == "Final answer: 0" and first["tokens"] == 9


@pytest.mark.parametrize(
    ("there", "reason"),
    [
        ({"max_tokens": 32}, "max_tokens 32 there, 96 here"),
        ({"temperature": 0.7}, "temperature 0.7 there, 0.0 here"),
        ({"test_set": TEST_SET[:2]}, "another test set"),
    ],
)
def test_answers_to_something_else_are_refused(there, reason):
    mine = asked_by(asking_run("mine"))
    asking_run("one", **there)
    with pytest.raises(RunError, match=reason) as error:
        taken_over("one", mine, TEST_SET, Format(), check_final_answer)
    assert "base_run=" in error.value.fix


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"base_model": "large"}, "base_model 'large' there"),
        ({"backend": "hosted"}, "backend 'hosted' there, 'stub' here"),
        ({"prompt_format": "qwen3_instruct"}, "prompt_format 'qwen3_instruct' there"),
    ],
)
def test_answers_of_another_model_are_refused(other, reason):
    run = asking_run("one")
    mine = asked_by(run)
    with run.edit() as manifest:
        results = manifest.stages.evaluate.results
        results.base_asked = results.base_asked.model_copy(update=other)
    with pytest.raises(RunError, match=reason):
        taken_over("one", mine, TEST_SET, Format(), check_final_answer)


def test_answers_of_a_stale_stage_and_to_other_prompts_are_refused():
    run = asking_run("one")
    mine, path = asked_by(run), run.file("evaluate/base_samples.jsonl")
    path.write_text(path.read_text().replace("What is", "What was"))
    with pytest.raises(RunError, match="does not answer this run's 3 prompts"):
        taken_over("one", mine, TEST_SET, Format(), check_final_answer)
    finish_stage(run, "train")
    with pytest.raises(RunError, match="no finished 'evaluate' stage"):
        taken_over("one", mine, TEST_SET, Format(), check_final_answer)


def test_course_run_refuses_a_base_run_before_it_starts(capsys, folder):
    asking_run("one", max_tokens=32)
    before = tree(folder)
    for setting, reason in (("base_run=one", "max_tokens 32 there, 96 here"), ("base_run=two", "'two'")):
        status, _, err = course(capsys, "run", "--dry-run", "-p", setting)
        assert status == 1 and tree(folder) == before
        assert_one_message(err, reason)
