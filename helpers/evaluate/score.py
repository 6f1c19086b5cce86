"""How many are right, and how sure that is: `Score`, and Wilson's interval behind it.

score = Score(70, 120)
print(score)               # 70/120 = 58.3%, 95% interval 49.4% to 66.8%
score.accuracy, score.ci95
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from helpers.errors import DataError


def wilson_interval(correct: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a proportion: it stays inside [0, 1] and is honest at 0 of n, unlike mean ±
    error.

    Wilson 1927, "Probable Inference, the Law of Succession, and Statistical Inference": with p = correct /
    total, the bounds are (p + z²/2n ± z·√(p(1 - p)/n + z²/4n²)) / (1 + z²/n).

    Args:
        correct: successes.
        total: trials, at least 1.
        z: 1.96 for 95%.

    Raises:
        DataError: the counts make no proportion.
    """
    if total < 1 or not 0 <= correct <= total:
        raise DataError(f"{correct} of {total} is no proportion", "score at least one problem")
    p, spread = correct / total, z * z / total
    middle = (p + spread / 2) / (1 + spread)
    half = z * math.sqrt(p * (1 - p) / total + spread / (4 * total)) / (1 + spread)
    # At 0 of n and n of n the bounds are 0 and 1 exactly; rounding must not put them beside.
    return (0.0 if correct == 0 else middle - half), (1.0 if correct == total else middle + half)


@dataclass(frozen=True)
class Score:
    """How many of how many are right.

    Raises:
        DataError: `total` is below 1, or `correct` is not between 0 and `total`.
    """

    correct: int
    total: int

    def __post_init__(self) -> None:
        wilson_interval(self.correct, self.total)

    @classmethod
    def of(cls, verdicts: Iterable[object]) -> "Score":
        """The score of anything that is true or false, one a problem."""
        verdicts = [bool(verdict) for verdict in verdicts]
        return cls(sum(verdicts), len(verdicts))

    @property
    def accuracy(self) -> float:
        return self.correct / self.total

    @property
    def ci95(self) -> tuple[float, float]:
        """Wilson's 95% interval of the accuracy."""
        return wilson_interval(self.correct, self.total)

    def fields(self) -> dict[str, Any]:
        """`accuracy`, `correct`, `total`, `ci95`: how the files of a run hold a score."""
        return {
            "accuracy": self.accuracy,
            "correct": self.correct,
            "total": self.total,
            "ci95": list(self.ci95),
        }

    def __str__(self) -> str:
        low, high = self.ci95
        return f"{self.correct}/{self.total} = {self.accuracy:.1%}, 95% interval {low:.1%} to {high:.1%}"
