"""What a run's records ask for, and so what makes an answer right: `task` of notebook 01.

| task | an answer is right if | beside the rate of right answers |
|---|---|---|
| `math` | its final answer has the value of the reference's | steps, in notebook 03 |
| `classification` | it names the reference's label and no other | each label, confusion, macro-F1, what the commonest label would score |
| `extraction` | all fields have the reference's values | precision, recall and F1 over fields |
| `text` | its words overlap with the reference's: F1 of at least `text_threshold` | mean F1 |

Notebook 01 chooses and checks it, and the manifest keeps it. All later notebooks take the grader from there, so that no run is
graded in two ways:

    task = task_of(run)
    evaluate_model(client, test_set, tokenizer, grader=task.grader)
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from helpers.data.duplicates import find_duplicates
from helpers.errors import DataError

TASKS = ("math", "classification", "extraction", "text")
UNBALANCED = 4  # the commonest label has so many times the records of the rarest


@dataclass(frozen=True)
class Task:
    """A kind of task with its grader.

    Attributes:
        name: one of TASKS.
        labels: of a classification, commonest first, with their counts in all records.
        threshold: F1 from which a free text is right.
        majority: of a classification, the commonest label of the training part; empty before the split.
    """

    name: str = "math"
    labels: dict[str, int] = field(default_factory=dict)
    threshold: float = 0.5
    majority: str = ""

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
            "text": f"its words overlap with the reference's, with an F1 of at least {self.threshold:g}",
        }[self.name]

    @property
    def settings(self) -> dict[str, Any]:
        """What the manifest keeps of it: `task_of` makes the task from that."""
        own = {
            "classification": {"labels": self.labels, "majority": self.majority},
            "text": {"threshold": self.threshold},
        }
        return {"name": self.name} | own.get(self.name, {})

    @property
    def grader(self) -> Callable[[str, str], Any]:
        """Takes an answer and a reference, gives a `helpers.evaluate.grading.Verdict`."""
        from helpers.evaluate.grading import check_fields, check_final_answer, check_label, check_text

        if self.name == "classification":
            labels = list(self.labels)
            return lambda output, reference: check_label(output, reference, labels)
        if self.name == "text":
            return lambda output, reference: check_text(output, reference, self.threshold)
        return {"math": check_final_answer, "extraction": check_fields}[self.name]

    def measures(self, samples: Sequence[dict]) -> dict[str, Any]:
        """What to report beside the rate of right answers.

        Args:
            samples: `samples` of a result of `evaluate_model`: `output`, `expected` and `score` of each.

        Returns:
            Empty for math. Else numbers in [0, 1] by name; for a classification `confusion` too (reference to what was
            answered to a count, `(none)` where no label or several were named), and `by_label`.
        """
        pairs = [(sample["output"], sample["expected"]) for sample in samples]
        if self.name == "classification":
            return _label_measures(pairs, list(self.labels), self.majority)
        if self.name == "extraction":
            return _field_measures(pairs)
        if self.name == "text":
            return {"mean_f1": sum(self.grader(*pair).evidence["f1"] for pair in pairs) / len(pairs)}
        return {}


def task_of(run: Any) -> Task:
    """The task that a run's data were split for; `math` for a run from before there were others.

    Raises:
        RunError: notebook 01 is not done.
    """
    return Task(**run.stage("split")["results"].get("task", {}))


def _some(words: Sequence[str], most: int = 12) -> str:
    return ", ".join(words[:most]) + (f", and {len(words) - most} more" if len(words) > most else "")


def reference_of(record: dict[str, Any]) -> str:
    """What graders compare with: the bare answer where the record has one, else the whole output."""
    return str(record.get("answer") or record["output"])


# ---------------------------------------------------------------------------------------------------------------------
# In notebook 01


def choose_task(
    name: str, records: Sequence[dict[str, Any]], text_threshold: float = 0.5
) -> tuple[Task, list[dict[str, Any]]]:
    """The task, and the records for it.

    Those of a classification without categories get their label as category: the split then gives every label the same share in each
    part, and scores come by label. Those of `extraction` and `text` lose an `answer`, since their reference is the whole output.

    Args:
        name: one of TASKS.
        records: all of them, before the split.
        text_threshold: F1 from which a free text is right.

    Raises:
        DataError: there is no such task, or the records can't be of it.
    """
    if name not in TASKS:
        raise DataError(f"there is no task {name!r}", f"tasks are {', '.join(TASKS)}")
    if not 0 < text_threshold <= 1:
        raise DataError(
            f"text_threshold is {text_threshold!r}", "it is an F1: over 0 and at most 1, such as 0.5"
        )
    if name in ("extraction", "text"):
        records = [
            {field: value for field, value in record.items() if field != "answer"} for record in records
        ]
    if name != "classification":
        return Task(name, threshold=text_threshold), list(records)
    counts = Counter(reference_of(record).strip() for record in records)
    if len(counts) < 2:
        raise DataError(
            f"all {len(records)} records have the output {next(iter(counts), '')[:60]!r}: there is nothing to classify",
            "bring records of at least two labels, or map another column to the output",
        )
    if len(counts) > len(records) / 2:
        raise DataError(
            f"{len(records)} records have {len(counts)} different outputs: those are no labels",
            "choose task=text or task=extraction, or map the column with the label to the output",
        )
    task = Task(name, dict(counts.most_common()))
    for label in counts:
        if not task.grader(label, label):
            raise DataError(
                f"the label {label[:60]!r} can't be told in an answer: {task.grader(label, label).why}",
                "rename labels that are the same but for case and punctuation, and use words, not signs",
            )
    if not any(record.get("category") for record in records):
        records = [record | {"category": reference_of(record).strip()} for record in records]
    return task, list(records)


def finish_task(task: Task, split: Any) -> tuple[Task, list[str]]:
    """Look at the parts of a split with the eyes of the task.

    Args:
        split: of `split_data`, made of the records that `choose_task` gave.

    Returns:
        The task, with what it needs to know of the training part, and notes on what makes a score worth less.

    Raises:
        DataError: a test or validation record whose own output would be graded as wrong: no model could get it right.
    """
    scored = [*split.test, *split.validation]
    verdicts = [(record["output"], task.grader(record["output"], reference_of(record))) for record in scored]
    wrong = [(output, verdict) for output, verdict in verdicts if not verdict]
    if wrong:
        output, verdict = wrong[0]
        others = ", ".join(other for other in TASKS if other != task.name)
        raise DataError(
            f"{len(wrong)} of {len(scored)} test and validation records can't be scored as {task.name}: their own output would be "
            f"wrong; the first: {output[:80]!r}, {verdict.why}",
            f"correct them or take them out, or choose another task: {others}",
        )
    records = [*split.train, *split.validation, *split.test]
    notes = _conflicts(task, records)
    kinds = {reference_of(record).strip() for record in records}
    if (
        task.name in ("math", "text")
        and len(kinds) <= len(records) / 5
        and not any(char.isdigit() for kind in kinds for char in kind)
    ):
        notes.append(
            f"the {len(records)} outputs are of {len(kinds)} kinds, as labels are: task=classification scores those"
        )
    without = sum(not any(char.isdigit() for char in reference_of(record)) for record in records)
    if task.name == "math" and without > len(records) / 2:
        notes.append(
            f"{without} of {len(records)} answers hold no number, and task=math compares final answers by value; for other data "
            "there are task=classification, extraction and text"
        )
    if task.name != "classification":
        return task, notes
    parts = {
        part: Counter(reference_of(record).strip() for record in getattr(split, part))
        for part in ("train", "validation", "test")
    }
    once = [label for label, count in task.labels.items() if count == 1]
    if once:
        notes.append(f"labels that occur once, and so can't be both learned and tested: {_some(once)}")
    for part, counts in parts.items():
        missing = [label for label in task.labels if label not in counts and label not in once]
        if missing:
            notes.append(
                f"labels missing in {part}: {_some(missing)}"
                + (": the score says nothing about them" if part == "test" else "")
            )
    train = parts["train"]
    majority, most = train.most_common(1)[0]
    if most >= UNBALANCED * min(train.values()):
        notes.append(
            f"unbalanced: {most} of {train.total()} training records are {majority!r}, {min(train.values())} are of the rarest "
            "label; read macro-F1 beside the accuracy"
        )
    return Task(task.name, task.labels, task.threshold, majority), notes


def _conflicts(task: Task, records: list[dict[str, Any]]) -> list[str]:
    """A note if records ask the same and have answers that would be wrong for one another."""
    if task.name == "text":  # two good texts may share few words
        return []
    found = []
    for group in find_duplicates(records):
        first, *others = [records[index] for index in group.indices]
        if group.kind == "exact" and not all(
            task.grader(other["output"], reference_of(first)) for other in others
        ):
            found.append(first)
    if not found:
        return []
    asked, what = (
        (found[0].get("input") or found[0]["instruction"])[:60],
        "question" if len(found) == 1 else "questions",
    )
    return [
        f"{len(found)} {what} with different answers in different records, which no model can all get right; the first: {asked!r}"
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Measures


def _label_measures(pairs: list[tuple[str, str]], labels: list[str], majority: str) -> dict[str, Any]:
    from sklearn.metrics import f1_score

    from helpers.evaluate.grading import label_in

    true = [label_in(expected, labels) or expected for _, expected in pairs]
    said = [label_in(output, labels) or "(none)" for output, _ in pairs]
    tested = [label for label in labels if label in true]
    confusion = {
        label: dict(Counter(s for t, s in zip(true, said) if t == label).most_common()) for label in tested
    }
    return {
        "macro_f1": float(f1_score(true, said, labels=tested, average="macro", zero_division=0)),
        "majority_baseline": sum(label == majority for label in true) / len(true),
        "by_label": {
            label: {"correct": row.get(label, 0), "total": sum(row.values())}
            for label, row in confusion.items()
        },
        "confusion": confusion,
    }


def _field_measures(pairs: list[tuple[str, str]]) -> dict[str, float]:
    from helpers.evaluate.grading import read_fields

    same = found = wanted = 0
    for output, expected in pairs:
        mine, right = read_fields(output) or {}, read_fields(expected) or {}
        same += len(mine.items() & right.items())
        found, wanted = found + len(mine), wanted + len(right)
    return {
        "field_precision": same / found if found else 0.0,
        "field_recall": same / wanted if wanted else 0.0,
        "field_f1": 2 * same / (found + wanted) if found + wanted else 0.0,
    }


def measures_text(task: Task, base: dict[str, Any], tuned: dict[str, Any]) -> str:
    """Measures of base and tuned model as lines of text; empty where there are none.

    Args:
        base, tuned: from `Task.measures`, of the same test records.
    """
    lines = [
        f"{name.replace('_', ' '):18} {value:5.1%} → {tuned[name]:5.1%}"
        for name, value in base.items()
        if isinstance(value, float) and name != "majority_baseline"
    ]
    if task.name != "classification":
        return "\n".join(lines)
    always = f"from always answering {task.majority!r}, the commonest label in training"
    lines.insert(0, f"{'majority baseline':18} {tuned['majority_baseline']:5.1%}, {always}")
    lines += ["label: right of all, base → tuned; what the tuned model said"]
    for label, row in tuned["by_label"].items():
        said = ", ".join(f"{name} {count}" for name, count in tuned["confusion"][label].items())
        lines.append(
            f"  {label}: {base['by_label'][label]['correct']} → {row['correct']} of {row['total']}; {said}"
        )
    return "\n".join(lines)
