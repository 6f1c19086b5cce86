"""What a grader makes of answers that no model gave: how low a score can be and still mean something.

    found = score_controls(task, test_set, train)
    print(found.text(task))
    found.flag(task)                        # empty, or what makes the score worth little

No sampling: the answers are references. A mismatched one is the reference of another problem. It is well
formed and wrong, so a grader that passes it looks at form only. The majority answer is one for all problems.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from helpers.evaluate.grading import text_f1
from helpers.evaluate.score import Headline, Score
from helpers.evaluate.tasks import Task, reference_of
from helpers.text import red

LENIENT = 0.05  # a measure that passes a larger share of the mismatched answers is flagged
ALIKE = 0.5  # the F1 of a text that shares half of its words with another

Records = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Control:
    """How such answers are graded.

    Attributes:
        mean_f1: of free text only.
        alike: of free text, how many have an F1 of ALIKE or more.
    """

    correct: int
    total: int
    mean_f1: float | None = None
    alike: int | None = None

    @classmethod
    def of(cls, task: Task, pairs: Sequence[tuple[str, str]]) -> "Control":
        """Grade pairs of an answer and a reference."""
        score = Score.of(task.grader(*pair) for pair in pairs)
        if task.name != "text":
            return cls(score.correct, score.total)
        shares = [text_f1(*pair) for pair in pairs]
        alike = sum(share >= ALIKE for share in shares)
        return cls(score.correct, score.total, sum(shares) / len(shares), alike)

    def headline(self, task: Task) -> Headline:
        return task.headline_of(Score(self.correct, self.total), self.mean_f1)


@dataclass(frozen=True)
class Controls:
    """The two controls of a test set, which every run's scores come with.

    Attributes:
        mismatched: each reference given to the next problem whose own reference is another one, so that
            labels that repeat don't count; None where all references are the same.
        majority: the commonest reference of the training part, answered always.
        majority_answer: that reference, cut at 200 characters.
    """

    mismatched: Control | None
    majority: Control
    majority_answer: str

    def flag(self, task: Task) -> str:
        """A warning if a measure passes over 5% of the mismatched answers; else empty."""
        if self.mismatched is None:
            return ""
        total = self.mismatched.total
        counts = [(task.measure, "passes", self.mismatched.correct)]
        if self.mismatched.alike is not None:
            counts.append(("mean F1", f"gives {ALIKE:g} or more to", self.mismatched.alike))
        found = [
            f"{measure} {verb} {count} of {total} answers to other problems, so a high {measure} says little "
            "about being right"
            for measure, verb, count in counts
            if count > LENIENT * total
        ]
        return f"WARNING: {'; '.join(found)}" if found else ""

    def lines(self, task: Task) -> list[str]:
        """The controls in words, a line each, without the warning."""
        mismatched = "none, since all references are the same"
        if self.mismatched:
            mismatched = str(self.mismatched.headline(task))
        always = f"always answering {self.majority_answer[:60]!r}, the commonest in training"
        return [
            f"mismatched answers, the references of other problems: {mismatched}",
            f"{always}: {self.majority.headline(task)}",
        ]

    def text(self, task: Task) -> str:
        """The lines, and the warning in red."""
        return "\n".join([*self.lines(task), *filter(None, [red(self.flag(task))])])


def score_controls(task: Task, test_data: Records, train_data: Records) -> Controls:
    """Grade the references of other problems, and the commonest reference of the training part.

    Args:
        test_data: the problems that models are scored on.
        train_data: the training part, at least one record.
    """
    pairs = _mismatched(task, test_data)
    meanings = [task.meaning(reference_of(record)) for record in train_data]
    commonest = Counter(meanings).most_common(1)[0][0]
    answer = train_data[meanings.index(commonest)]
    always = [(str(answer["output"]), reference_of(example)) for example in test_data]
    return Controls(
        mismatched=Control.of(task, pairs) if pairs else None,
        majority=Control.of(task, always),
        majority_answer=reference_of(answer)[:200],
    )


def _mismatched(task: Task, test_data: Records) -> list[tuple[str, str]]:
    """For each problem the output of the one before it whose reference has another meaning, and its own
    reference.
    """
    meanings = [task.meaning(reference_of(example)) for example in test_data]
    if len(set(meanings)) < 2:
        return []
    pairs = []
    for index, example in enumerate(test_data):
        other = next(
            index - step for step in range(1, len(meanings)) if meanings[index - step] != meanings[index]
        )
        pairs.append((str(test_data[other]["output"]), reference_of(example)))
    return pairs
