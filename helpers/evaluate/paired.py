"""Two models on the same problems: which answers changed, whether that may be chance, and a table of before
and after.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from helpers.errors import DataError
from helpers.evaluate.controls import Controls
from helpers.evaluate.score import Mean, wilson_interval
from helpers.evaluate.tasks import Task


def mcnemar(base_samples: Sequence[dict], tuned_samples: Sequence[dict]) -> dict[str, Any]:
    """McNemar's exact test: of the problems where two models differ, is the split a fair coin's?

    Args:
        base_samples: `samples` of a result, in any order.
        tuned_samples: the same problems, judged for the other model.

    Returns:
        `gained` and `lost` (pairs of records: only the tuned, only the base model right), `both_right`,
        `both_wrong` (counts), `p_value` (two-sided), `difference` (accuracy of tuned minus base), `ci95` (its
        interval).

    Raises:
        DataError: the two lists are not about the same problems.
    """
    base, tuned = (
        {sample["index"]: sample for sample in samples} for samples in (base_samples, tuned_samples)
    )
    if (
        not base
        or base.keys() != tuned.keys()
        or len(base) != len(base_samples)
        or len(tuned) != len(tuned_samples)
    ):
        raise DataError(
            "the two results are not about the same problems", "score both models on the same test set"
        )
    if any(base[i].get("problem") != tuned[i].get("problem") for i in base):
        raise DataError(
            "problems with the same index differ between the two results",
            "score both models on the same test set",
        )
    pairs = [(base[index], tuned[index]) for index in sorted(base)]
    gained = [pair for pair in pairs if pair[1]["score"] and not pair[0]["score"]]
    lost = [pair for pair in pairs if pair[0]["score"] and not pair[1]["score"]]
    both = sum(bool(a["score"] and b["score"]) for a, b in pairs)
    flips, fewer = len(gained) + len(lost), min(len(gained), len(lost))
    tail = sum(math.comb(flips, k) for k in range(fewer + 1)) / 2**flips
    return {
        "gained": gained,
        "lost": lost,
        "both_right": both,
        "both_wrong": len(pairs) - both - flips,
        "p_value": min(1.0, 2 * tail),
        "difference": (len(gained) - len(lost)) / len(pairs),
        "ci95": _difference_interval(len(gained), len(lost), len(pairs)),
    }


def _difference_interval(gained: int, lost: int, total: int) -> tuple[float, float]:
    """The 95% interval of a paired difference: Wald's, with half a pair more of each of the four kinds.

    Agresti and Min 2005, "Simple improved confidence intervals for comparing matched proportions".
    """
    more, fewer, pairs = gained + 0.5, lost + 0.5, total + 2
    middle = (more - fewer) / pairs
    half = 1.96 * math.sqrt(more + fewer - (more - fewer) ** 2 / pairs) / pairs
    return max(-1.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class WinRate:
    """How often one model's answer beats another's on the same problems."""

    wins: int
    ties: int
    losses: int

    @property
    def rate(self) -> float:
        """The share of wins; a tie counts half."""
        return (self.wins + self.ties / 2) / self.total

    @property
    def total(self) -> int:
        return self.wins + self.ties + self.losses

    @property
    def ci95(self) -> tuple[float, float]:
        """Wilson's 95% interval of the rate. With ties it is too wide rather than too narrow."""
        return wilson_interval(self.rate * self.total, self.total)

    def __str__(self) -> str:
        low, high = self.ci95
        counts = f"{self.wins} won, {self.ties} tied, {self.losses} lost"
        return f"win rate {self.rate:.1%}, 95% interval {low:.1%} to {high:.1%} ({counts})"


def win_rate(before: Sequence[Any], after: Sequence[Any]) -> WinRate:
    """The win rate of the second model over the first.

    Args:
        before, after: the rank of each answer, on the same problems in the same order: anything that can be
            compared, the larger the better.

    Raises:
        DataError: there is nothing to compare, or the lengths differ.
    """
    if not before or len(before) != len(after):
        raise DataError(
            f"{len(before)} answers against {len(after)}", "rank both models' answers to the same problems"
        )
    wins = sum(new > old for old, new in zip(before, after, strict=True))
    losses = sum(new < old for old, new in zip(before, after, strict=True))
    return WinRate(wins, len(before) - wins - losses, losses)


def before_after_table(
    base: dict[str, Any], tuned: dict[str, Any], task: Task | None = None, controls: Controls | None = None
) -> str:
    """Two results of `evaluate_model` side by side: all, each category, each kind of template, and the task's
    measures.

    Args:
        task: of the run; its name for the rate stands at the head, and its other measures, such as macro-F1,
            follow the table.
        controls: of the same test set, to end with.
    """
    measure = task.measure if task else ""

    def cell(row: dict[str, Any]) -> str:
        low, high = row["ci95"]
        return f"{row['correct']:3}/{row['total']:<3} {row['accuracy']:4.0%}  [{low:.0%}, {high:.0%}]"

    lines = [f"{measure:16} {'base':28} tuned", f"{'all':16} {cell(base):28} {cell(tuned)}"]
    for group in ("by_category", "by_template"):
        rows = [f"{name:16} {cell(base[group][name]):28} {cell(row)}" for name, row in tuned[group].items()]
        lines += ["", *rows] if rows else []
    if task and (base_measures := task.measures(base["samples"])):
        lines += ["", measures_text(task, base_measures, task.measures(tuned["samples"]), tuned["total"])]
    if task and controls:
        lines += ["", controls.text(task)]
    return "\n".join(line.rstrip() for line in lines)


def measures_text(task: Task, base: dict[str, Any], tuned: dict[str, Any], total: int) -> str:
    """Measures of base and tuned model as lines of text; empty where there are none.

    Args:
        base, tuned: from `Task.measures`, of the same test records.
        total: how many records.
    """
    if task.name == "text":
        return f"mean F1  {Mean(base['mean_f1'], total)} → {Mean(tuned['mean_f1'], total)}"
    lines = [
        f"{name.replace('_', ' '):18} {value:5.1%} → {tuned[name]:5.1%}"
        for name, value in base.items()
        if isinstance(value, float)
    ]
    if task.name != "classification":
        return "\n".join(lines)
    lines += ["label: right of all, base → tuned; what the tuned model said"]
    for label, row in tuned["by_label"].items():
        said = ", ".join(f"{name} {count}" for name, count in tuned["confusion"][label].items())
        before = base["by_label"][label]["correct"]
        lines.append(f"  {label}: {before} → {row['correct']} of {row['total']}; {said}")
    return "\n".join(lines)
