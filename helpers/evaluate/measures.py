"""What to report beside the rate of right answers: which labels are mixed up, which fields are right."""

from collections import Counter
from typing import Any

from helpers.evaluate.grading import label_in, read_fields

Pairs = list[tuple[str, str]]  # (answer, reference)


def label_measures(pairs: Pairs, labels: list[str]) -> dict[str, Any]:
    """Of a classification: `macro_f1`, `by_label` and `confusion`.

    Args:
        labels: all that there are, commonest first.
    """
    from sklearn.metrics import f1_score

    true = [label_in(expected, labels) or expected for _, expected in pairs]
    said = [label_in(output, labels) or "(none)" for output, _ in pairs]
    tested = [label for label in labels if label in true]
    cells = list(zip(true, said, strict=True))
    confusion = {label: dict(Counter(s for t, s in cells if t == label).most_common()) for label in tested}
    f1 = f1_score(true, said, labels=tested, average="macro", zero_division=0)  # pyright: ignore[reportArgumentType]
    return {
        "macro_f1": float(f1),
        "by_label": {
            label: {"correct": row.get(label, 0), "total": sum(row.values())}
            for label, row in confusion.items()
        },
        "confusion": confusion,
    }


def field_measures(pairs: Pairs) -> dict[str, float]:
    """Of an extraction: `field_precision`, `field_recall` and `field_f1`, over all fields of all answers."""
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
