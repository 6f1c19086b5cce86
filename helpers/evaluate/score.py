"""How many are right, and how sure that is: `Score`, `Mean`, `Headline`, and Wilson's interval behind them.

score = Score(70, 120)
print(score)               # 70/120 = 58.3%, 95% interval 49.4% to 66.8%
score.accuracy, score.ci95
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from helpers.errors import DataError


def wilson_interval(correct: float, total: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a proportion: it stays inside [0, 1] and is honest at 0 of n, unlike mean ±
    error.

    Wilson 1927, "Probable Inference, the Law of Succession, and Statistical Inference": with p = correct /
    total, the bounds are (p + z²/2n ± z·√(p(1 - p)/n + z²/4n²)) / (1 + z²/n).

    Args:
        correct: successes; or the sum of shares between 0 and 1, for the interval of their mean.
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


@dataclass(frozen=True)
class Mean:
    """A mean of shares between 0 and 1, one a problem, such as F1.

    Its 95% interval is Wilson's, with the sum of the shares in place of the count of right answers. Of all
    values between 0 and 1 with the same mean, zeros and ones vary most, so the interval is too wide rather
    than too narrow, and it is not ±0 where all shares are 0.

    Raises:
        DataError: `total` is below 1, or `value` is not between 0 and 1.
    """

    value: float
    total: int

    def __post_init__(self) -> None:
        wilson_interval(self.value * self.total, self.total)

    @property
    def ci95(self) -> tuple[float, float]:
        """The 95% interval of the mean."""
        return wilson_interval(self.value * self.total, self.total)

    def __str__(self) -> str:
        low, high = self.ci95
        return f"{self.value:.2f}, 95% interval {low:.2f} to {high:.2f}"


@dataclass(frozen=True)
class Headline:
    """What is said of a model first, with the name of each measure, which its task gives.

    Attributes:
        measure: what the rate of right answers is called, such as `accuracy` or `exact match`.
        mean_f1: of free text only.
    """

    measure: str
    score: Score
    mean_f1: Mean | None = None

    @property
    def rank(self) -> tuple[float, float]:
        """For comparing models on the same problems: the rate first, then the mean F1."""
        return self.score.accuracy, self.mean_f1.value if self.mean_f1 else 0.0

    def fields(self) -> dict[str, Any]:
        """Those of the score, with `measure`, `mean_f1` and `mean_f1_ci95` (None but for free text)."""
        mean = self.mean_f1
        return (
            {"measure": self.measure}
            | self.score.fields()
            | {
                "mean_f1": mean.value if mean else None,
                "mean_f1_ci95": list(mean.ci95) if mean else None,
            }
        )

    def __str__(self) -> str:
        return f"{self.measure} {self.score}" + (f"; mean F1 {self.mean_f1}" if self.mean_f1 else "")
