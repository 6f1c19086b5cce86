"""Two models on the same problems: which answers changed, whether that may be chance, and a table of before and after."""

import math
from collections.abc import Sequence
from typing import Any

from helpers.errors import DataError


def mcnemar(base_samples: Sequence[dict], tuned_samples: Sequence[dict]) -> dict[str, Any]:
    """McNemar's exact test: of the problems where two models differ, is the split a fair coin's?

    Args:
        base_samples: `samples` of a result, in any order.
        tuned_samples: the same problems, judged for the other model.

    Returns:
        `gained` and `lost` (pairs of records: only the tuned, only the base model right), `both_right`, `both_wrong`
        (counts), `p_value` (two-sided), `difference` (accuracy of tuned minus base).

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
    }


def before_after_table(base: dict[str, Any], tuned: dict[str, Any]) -> str:
    """Two results of `evaluate_model` side by side: all, each category, each kind of template, with counts and intervals."""

    def cell(row: dict[str, Any]) -> str:
        return f"{row['correct']:3}/{row['total']:<3} {row['accuracy']:4.0%}  [{row['ci95'][0]:.0%}, {row['ci95'][1]:.0%}]"

    lines = [f"{'':16} {'base':28} tuned", f"{'all':16} {cell(base):28} {cell(tuned)}"]
    for group in ("by_category", "by_template"):
        if tuned[group]:
            lines += [
                "",
                *(
                    f"{name:16} {cell(base[group][name]):28} {cell(row)}"
                    for name, row in tuned[group].items()
                ),
            ]
    return "\n".join(line.rstrip() for line in lines)
