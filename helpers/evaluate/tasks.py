"""What a run's records ask for, and so what makes an answer right: the setting `task` of notebook 01.

| task | an answer is right if | beside the rate of right answers |
|---|---|---|
| `math` | its final answer has the value of the reference's | steps, in notebook 03 |
| `classification` | it names the reference's label and no other | by label, confusion, macro-F1 |
| `extraction` | all fields have the reference's values | precision, recall and F1 over fields |
| `calls` | it makes the reference's tool calls | |
| `text` | it is the reference, but for case, spaces and end punctuation | mean F1 |

The rate of right answers is called `accuracy`, and `exact match` for `text`: two good texts are seldom the
same, so read the mean F1 beside it. All that prints a score takes these names from `Task.headline`.

Notebook 01 chooses and checks it, and the manifest keeps it. All later notebooks take the grader from there,
so that no run is graded in two ways:

    task, records = choose_task("classification", records)
    notes = task.check(split)
    evaluate_model(client, test_set, tokenizer, grader=task.grader)
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from helpers.data.split import Split
from helpers.errors import DataError
from helpers.evaluate.grading import (
    check_answer,
    check_calls,
    check_fields,
    check_final_answer,
    check_label,
    normalise,
    read_calls,
    read_fields,
    text_f1,
)
from helpers.evaluate.grading.verdict import Verdict
from helpers.evaluate.measures import field_measures, label_measures
from helpers.evaluate.score import Headline, Mean, Score

TASKS = ("math", "classification", "extraction", "calls", "text")
UNBALANCED = 4  # the commonest label has this many times the records of the rarest

Records = list[dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """A kind of task with its grader.

    Attributes:
        name: one of TASKS.
        labels: of a classification, commonest first, with their counts in all records.
    """

    name: str = "math"
    labels: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        text = f"task {self.name}: an answer is right if {self.rule}"
        labels = [f"{label} ({count})" for label, count in self.labels.items()]
        return f"{text}. {len(labels)} labels: {_some(labels)}" if labels else text

    @property
    def rule(self) -> str:
        """When an answer is right, to follow "if"."""
        return {
            "math": "its final answer has the same value as the reference's",
            "classification": "it names the reference's label and no other",
            "extraction": "it has the same fields as the reference, each with the same value",
            "calls": "it makes the reference's tool calls, by name and arguments, or is its text",
            "text": "its text is the reference's, but for case, spaces and punctuation at the end",
        }[self.name]

    @property
    def settings(self) -> dict[str, Any]:
        """What the files of a run keep of it."""
        return {"name": self.name} | ({"labels": self.labels} if self.labels else {})

    @property
    def measure(self) -> str:
        """What the rate of right answers is called, wherever it is shown."""
        return "exact match" if self.name == "text" else "accuracy"

    def headline(self, result: dict[str, Any]) -> Headline:
        """What to say first of a result of `evaluate_model` or `score_outputs`."""
        mean_f1 = self.measures(result["samples"]).get("mean_f1")
        return self.headline_of(result["score"], mean_f1)

    def headline_of(self, score: Score, mean_f1: float | None) -> Headline:
        """The same, from a score and a mean F1 (None but for free text) that a file of a run holds."""
        return Headline(self.measure, score, None if mean_f1 is None else Mean(mean_f1, score.total))

    @property
    def grader(self) -> Callable[[str, str], Verdict]:
        """Takes an answer and a reference, gives a verdict."""
        if self.name == "classification":
            labels = list(self.labels)
            return lambda output, reference: check_label(output, reference, labels)
        return {
            "math": check_final_answer,
            "extraction": check_fields,
            "calls": check_calls,
            "text": check_answer,
        }[self.name]

    def meaning(self, reference: str) -> str:
        """What counts of a reference: answers that are right for one are right for all with this meaning."""
        if self.name == "math":
            return check_final_answer("", reference).expected or reference
        if self.name == "extraction":
            return str(sorted((read_fields(reference) or {}).items()))
        if self.name == "calls" and (calls := read_calls(reference)):
            return str(sorted(calls))
        return normalise(reference)

    def measures(self, samples: Sequence[dict]) -> dict[str, Any]:
        """What to report beside the rate of right answers.

        Args:
            samples: `samples` of a result of `evaluate_model`: `output`, `expected` and `score` of each.

        Returns:
            Empty for math. Else numbers in [0, 1] by name; for a classification `confusion` too (reference to
            what was answered to a count, `(none)` where no label or several were named), and `by_label`.
        """
        pairs = [(sample["output"], sample["expected"]) for sample in samples]
        if self.name == "classification":
            return label_measures(pairs, list(self.labels))
        if self.name == "extraction":
            return field_measures(pairs)
        if self.name == "text":
            return {"mean_f1": sum(text_f1(*pair) for pair in pairs) / len(pairs)}
        return {}

    def check(self, split: Split) -> list[str]:
        """Check the parts of a split, which was made of the records that `choose_task` gave.

        Returns:
            Notes on what makes a score worth less.

        Raises:
            DataError: a test or validation record whose own output would be graded as wrong: no model could
                get it right.
        """
        _check_scorable(self, [*split.test, *split.validation])
        records = [*split.train, *split.validation, *split.test]
        notes = _conflicts(self, split.repeats) + _other_task(self, records)
        return notes + (_label_notes(self, split) if self.name == "classification" else [])


def reference_of(record: dict[str, Any]) -> str:
    """What graders compare with: the bare answer where the record has one, else the whole output."""
    return str(record.get("answer") or record["output"])


def choose_task(name: str, records: Sequence[dict[str, Any]]) -> tuple[Task, Records]:
    """The task, and the records for it.

    Those of a classification without categories get their label as category: the split then gives every label
    the same share in each part, and scores come by label. Those of `extraction`, `calls` and `text` lose an
    `answer`, since their reference is the whole output.

    Args:
        name: one of TASKS.
        records: all of them, before the split.

    Raises:
        DataError: there is no such task, or the records can't be of it.
    """
    if name not in TASKS:
        raise DataError(f"there is no task {name!r}", f"tasks are {', '.join(TASKS)}")
    if name in ("extraction", "calls", "text"):
        records = [{key: value for key, value in row.items() if key != "answer"} for row in records]
    if name != "classification":
        return Task(name), list(records)
    task = Task(name, _labels(records))
    if not any(record.get("category") for record in records):
        records = [record | {"category": reference_of(record).strip()} for record in records]
    return task, list(records)


def _labels(records: Sequence[dict[str, Any]]) -> dict[str, int]:
    """The labels with their counts, commonest first; refused if they are none, or can't be told apart."""
    counts = _label_counts(records)
    if len(counts) < 2:
        raise DataError(
            f"all {len(records)} records have the output {next(iter(counts), '')[:60]!r}: there is nothing "
            "to "
            "classify",
            "bring records of at least two labels, or map another column to the output",
        )
    if len(counts) > len(records) / 2:
        raise DataError(
            f"{len(records)} records have {len(counts)} different outputs: those are no labels",
            "choose task=text or task=extraction, or map the column with the label to the output",
        )
    labels = dict(counts.most_common())
    for label in labels:
        verdict = check_label(label, label, list(labels))
        if not verdict:
            raise DataError(
                f"the label {label[:60]!r} can't be told in an answer: {verdict.why}",
                "rename labels that are the same but for case and punctuation, and use words, not signs",
            )
    return labels


def _label_counts(records: Sequence[dict[str, Any]]) -> Counter[str]:
    return Counter(reference_of(record).strip() for record in records)


def _check_scorable(task: Task, records: Records) -> None:
    verdicts = [(record["output"], task.grader(record["output"], reference_of(record))) for record in records]
    wrong = [(output, verdict) for output, verdict in verdicts if not verdict]
    if not wrong:
        return
    output, verdict = wrong[0]
    others = ", ".join(other for other in TASKS if other != task.name)
    raise DataError(
        f"{len(wrong)} of {len(records)} test and validation records can't be scored as {task.name}: their "
        "own output "
        f"would be wrong; the first: {output[:80]!r}, {verdict.why}",
        f"correct them or take them out, or choose another task: {others}",
    )


def _other_task(task: Task, records: Records) -> list[str]:
    """A note if the outputs look like labels, or hold no numbers, and the task is for others."""
    notes = []
    kinds = set(_label_counts(records))
    few = len(kinds) <= len(records) / 5
    if task.name in ("math", "text") and few and not any(char.isdigit() for kind in kinds for char in kind):
        notes.append(
            f"the {len(records)} outputs are of {len(kinds)} kinds, as labels are: task=classification "
            "scores those"
        )
    without = sum(not any(char.isdigit() for char in reference_of(record)) for record in records)
    if task.name == "math" and without > len(records) / 2:
        notes.append(
            f"{without} of {len(records)} answers hold no number, and task=math compares final answers by "
            "value; for "
            "other data there are task=classification, extraction, calls and text"
        )
    return notes


def _label_notes(task: Task, split: Split) -> list[str]:
    """Labels that occur once, are missing in a part, or outnumber the others by far."""
    notes = []
    once = [label for label, count in task.labels.items() if count == 1]
    if once:
        notes.append(f"labels that occur once, and so can't be both learned and tested: {_some(once)}")
    for part in ("train", "validation", "test"):
        counts = _label_counts(getattr(split, part))
        missing = [label for label in task.labels if label not in counts and label not in once]
        if missing:
            unknown = ": the score says nothing about them" if part == "test" else ""
            notes.append(f"labels missing in {part}: {_some(missing)}{unknown}")
    train = _label_counts(split.train)
    (majority, most), fewest = train.most_common(1)[0], min(train.values())
    if most >= UNBALANCED * fewest:
        notes.append(
            f"unbalanced: {most} of {train.total()} training records are {majority!r}, {fewest} are of the "
            "rarest "
            "label; read macro-F1 beside the accuracy"
        )
    return notes


def _conflicts(task: Task, repeats: list[Records]) -> list[str]:
    """A note if records ask the same and have answers that would be wrong for one another."""
    if task.name == "text":  # two good texts may share few words
        return []
    found = []
    for first, *others in repeats:
        reference = reference_of(first)
        if not all(
            reference_of(other) == reference or task.grader(other["output"], reference) for other in others
        ):
            found.append(first)
    if not found:
        return []
    asked = (found[0].get("input") or found[0]["instruction"])[:60]
    return [
        f"{len(found)} question{'s' * (len(found) > 1)} with different answers in different records, which "
        "no model can "
        f"all get right; the first: {asked!r}"
    ]


def _some(words: Sequence[str], most: int = 12) -> str:
    return ", ".join(words[:most]) + (f", and {len(words) - most} more" if len(words) > most else "")
