"""What a notebook of Part 2 or 3 measured, in one form for all of them, so that a sweep can compare its runs.

save_scores(folder, {"before": {"T=1": {"count": Score(74, 216), "sense": 0.29}}, "KL": 0.1})
read_scores(run, "10_reinforcement_learning")["before T=1 count"].value     # 0.34
"""

import math
from collections.abc import Iterator, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, RootModel, ValidationError

from helpers.errors import CourseError, RunError
from helpers.evaluate.paired import WinRate
from helpers.evaluate.score import Score
from helpers.files import read_json, write_json
from helpers.runs.run import Run

SCORES = "scores.json"


class LessonScore(BaseModel):
    """One number. A share of right answers has its counts; `ci95` is None where no interval is known."""

    model_config = ConfigDict(extra="forbid")

    value: float
    ci95: tuple[float, float] | None = None
    correct: int | None = None
    total: int | None = None

    def __str__(self) -> str:
        """`74/216 34% [28%, 41%]` with counts, else `0.674 [0.583, 0.754]`."""
        shown = (
            f"{self.value:.3g}" if self.correct is None else f"{self.correct}/{self.total} {self.value:.0%}"
        )
        if self.ci95 is None:
            return shown
        ends = (f"{end:.3g}" if self.correct is None else f"{end:.0%}" for end in self.ci95)
        return f"{shown} [{', '.join(ends)}]"


class LessonScores(RootModel[dict[str, LessonScore]]):
    """`scores.json`: the scores by name, in the notebook's order."""


def save_scores(folder: Path, scores: Mapping[str, Any]) -> Path:
    """Write a notebook's scores into its folder.

    Args:
        scores: by name, which may be nested: the names of a score are then joined. A score is a number, a
            `Score`, a `WinRate`, or what `mcnemar` gives.

    Raises:
        CourseError: a score is something else, or not finite, or two have the same joined name.
    """
    found: dict[str, LessonScore] = {}
    for name, score in _flat(scores):
        if name in found:
            raise CourseError(f"two scores are called {name!r}", "give each a name of its own")
        found[name] = score
    return write_json(folder / SCORES, LessonScores(found).model_dump(exclude_none=True))


def _flat(scores: Mapping[str, Any], head: str = "") -> Iterator[tuple[str, LessonScore]]:
    for name, found in scores.items():
        if isinstance(found, Mapping) and "difference" not in found:
            yield from _flat(found, f"{head}{name} ")
        else:
            yield f"{head}{name}", _score(f"{head}{name}", found)


def _score(name: str, found: Any) -> LessonScore:
    match found:
        case Score():
            return LessonScore(
                value=found.accuracy, ci95=found.ci95, correct=found.correct, total=found.total
            )
        case WinRate():
            return LessonScore(value=found.rate, ci95=found.ci95)
        case {"difference": value, "ci95": (low, high)}:
            return LessonScore(value=_finite(name, value), ci95=(_finite(name, low), _finite(name, high)))
    return LessonScore(value=_finite(name, found))


def _finite(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise CourseError(
            f"the score {name!r} is {value!r}",
            "it must be a finite number, a Score, a WinRate or mcnemar's result",
        )
    return float(value)


def read_scores(run: Run, lesson: str) -> dict[str, LessonScore]:
    """The scores that a lesson left in a run; empty if there are none.

    Raises:
        RunError: the file is damaged.
    """
    path = run.file(f"{lesson}/{SCORES}")
    if not path.is_file():
        return {}
    try:
        return LessonScores.model_validate(read_json(path)).root
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = " ".join(map(str, first["loc"])) or "the whole file"
        raise RunError(
            f"{lesson}/{SCORES} is damaged: {where}: {first['msg']}", f"run notebooks/{lesson}.ipynb again"
        ) from error


def score_rows(runs: list[dict[str, LessonScore]]) -> list[list[str]]:
    """A row for each score that any of the runs has: its name, and its text in each run."""
    names = dict.fromkeys(name for own in runs for name in own)
    return [[name, *(str(own[name]) if name in own else "–" for own in runs)] for name in names]
