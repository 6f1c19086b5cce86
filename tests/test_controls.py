"""Controls of a grader: answers to other problems, and one answer to all. No model is asked."""

import json
from dataclasses import asdict
from typing import Any

import pytest
from test_tasks import BOB, LOOKALIKES

from helpers.evaluate.controls import Control, Controls, score_controls
from helpers.evaluate.evaluation import score_outputs
from helpers.evaluate.grading import Verdict
from helpers.evaluate.paired import before_after_table
from helpers.evaluate.tasks import Task


def rows(outputs: list[str]) -> list[dict[str, Any]]:
    return [{"instruction": f"question {n}", "output": text} for n, text in enumerate(outputs)]


class Lenient(Task):
    """Its grader passes any answer that is not empty."""

    @property
    def grader(self):
        return lambda output, reference: Verdict(bool(output.strip()), "any text will do")


@pytest.mark.parametrize(
    ("task", "outputs", "passed", "total"),
    [
        (Task(), [f"Final answer: {n}" for n in range(8)], 0, 8),
        (Task(), ["Step 1: 2 + 2 = 4\nFinal answer: 4", "The answer is 4", "Final answer: 5"], 0, 3),
        (Task("classification", {"spam": 6, "ham": 2}), ["spam"] * 6 + ["ham"] * 2, 0, 8),
        (Task("extraction"), [BOB, BOB.replace("Bob", "Tom"), BOB], 0, 3),
        (Task("text"), LOOKALIKES, 0, 8),
        (Lenient("classification", {"spam": 6, "ham": 2}), ["spam"] * 6 + ["ham"] * 2, 8, 8),
        (Lenient(), ["4", "5"], 2, 2),
    ],
)
def test_mismatched_answers_are_wrong_unless_the_grader_is_lenient(task, outputs, passed, total):
    """Two problems with one label are no mismatch, nor are two of the same value."""
    found = score_controls(task, rows(outputs), rows(outputs)).mismatched
    assert found and (found.correct, found.total) == (passed, total)


def test_no_mismatch_without_two_references():
    found = score_controls(Task(), rows(["4", "Final answer: 4"]), rows(["4"]))
    assert found.mismatched is None and found.flag(Task()) == "" and "none, since" in found.text(Task())


def test_the_majority_answer_is_the_commonest_in_training():
    task = Task("classification", {"spam": 6, "ham": 2})
    found = score_controls(task, rows(["ham", "spam", "ham"]), rows(["ham", "spam", "Spam."]))
    assert (found.majority, found.majority_answer) == (Control(1, 3), "spam")
    assert "always answering 'spam', the commonest in training: accuracy 1/3" in found.text(task)


@pytest.mark.parametrize(
    ("task", "mismatched", "flag"),
    [
        (Task(), Control(1, 20), ""),
        (Task(), Control(2, 20), "accuracy passes 2 of 20 answers to other problems"),
        (Task("text"), Control(0, 20, 0.3, 1), ""),
        (Task("text"), Control(0, 20, 0.3, 2), "mean F1 gives 0.5 or more to 2 of 20 answers"),
        (Task("text"), Control(3, 20, 0.3, 2), "exact match passes 3 of 20"),
    ],
)
def test_a_measure_that_passes_more_than_a_twentieth_is_flagged(task, mismatched, flag):
    found = Controls(mismatched, Control(0, 20), "4").flag(task)
    assert flag in found and bool(found) == bool(flag)


def test_lookalikes_are_flagged_beside_the_score(monkeypatch):
    task, test_set = Task("text"), rows(LOOKALIKES)
    found = score_controls(task, test_set, test_set)
    assert json.loads(json.dumps(asdict(found)))["mismatched"]["alike"] == 8
    result = score_outputs(test_set, LOOKALIKES, task.grader)
    table = before_after_table(result, result, task, found)
    assert table.startswith("exact match ") and "mean F1 gives 0.5 or more to 8 of 8 answers" in table
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\033[31mWARNING: mean F1" in found.text(task)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033" not in found.text(task)
