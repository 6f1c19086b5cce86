"""The check below an exercise: quiet until tried, a hint for a wrong answer, and never a traceback.

In the notebook, the answer and its check are one cell. A value:

    my_count = None  # a whole number


    def hint(count):
        if not same(count, 13):
            return "print the pieces: what happens to a space before a digit?"


    check_exercise(1, my_count, hint)

A function, which the hint calls with at least two inputs, so that no constant passes:

    def my_weights(prompt, answer):
        return None  # your code


    def hint(weights_for):
        mine = weights_for([1, 2, 3], [4, 5])
        if len(mine) != 4:
            return "there's one target fewer than there are tokens."
        if not same(mine, [0, 0, 1, 1]) or not same(weights_for([1], [2]), [1]):
            return "which target is the first token of the answer?"


    check_exercise(2, my_weights, hint, "Right. The first answer token counts too.")

`hint` says what the likely mistake is and not the answer, the most likely mistake first, and returns None if
all is right. It prints `Exercise 2: not tried yet.`, `Hint: …`, or the last argument. An exception, in the
learner's code or because the answer is of an odd type, becomes a hint too.
"""

import math
import traceback
from collections.abc import Callable
from fractions import Fraction
from typing import Any


class _NotTried(Exception):
    """The learner's function returned nothing at its first call."""


class _ReturnsNothing(Exception):
    """It did later: for some arguments only."""


def check_exercise(
    number: int, answer: Any, hint: Callable[[Any], str | None], right: str = "Right."
) -> None:
    """Print how far an answer is right.

    Args:
        number: of the exercise in its notebook.
        answer: the learner's value, function or other callable. None, an empty text or an empty list is no
            try yet, nor is a function that returns None.
        hint: takes the answer, and says what is wrong; None if nothing is.
        right: what to say then.
    """
    print(_judged(answer, hint, right) or f"Exercise {number}: not tried yet.")


def _judged(answer: Any, hint: Callable[[Any], str | None], right: str) -> str:
    """What to say of an answer; nothing if there is none."""
    if answer is None or (isinstance(answer, str | list | tuple | dict | set) and not answer):
        return ""
    try:
        wrong = hint(_Watched(answer) if callable(answer) else answer)
    except _NotTried:
        return ""
    except _ReturnsNothing as nothing:
        return f"Hint: {nothing}"
    except Exception as error:  # whatever the learner's code raises is to become a hint
        return f"Hint: {_place(error)}: {type(error).__name__}: {error}"
    return f"Hint: {wrong}" if wrong else right


def _place(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    calls = [i for i, frame in enumerate(frames) if (frame.filename, frame.name) == (__file__, "__call__")]
    if not calls:
        return "the check can't use this answer"
    line = frames[calls[-1] + 1].line if calls[-1] + 1 < len(frames) else ""
    return f"your code failed at `{line}`" if line else "your code failed"


class _Watched:
    """The learner's function, which has to return something."""

    def __init__(self, function: Callable):
        self._function, self._returned = function, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._function, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        value = self._function(*args, **kwargs)
        if value is None and not self._returned:
            raise _NotTried
        if value is None:
            given = ", ".join([*map(repr, args), *(f"{name}={one!r}" for name, one in kwargs.items())])
            raise _ReturnsNothing(f"your function returns nothing for ({given}); does each way out return?")
        self._returned = True
        return value


def same(answer: Any, expected: Any, tolerance: float = 1e-6) -> bool:
    """Whether an answer is the expected one, in whatever form: `5`, `5.0`, `"5"`, `"1,248"`, `"8%"`, `"1/3"`.

    Lists are compared item by item, numbers with a tolerance, which is relative above 1, other texts without
    case and outer spaces.
    """
    if isinstance(expected, list | tuple):
        items = answer.tolist() if hasattr(answer, "tolist") else answer
        return (
            isinstance(items, list | tuple)
            and len(items) == len(expected)
            and all(same(a, b, tolerance) for a, b in zip(items, expected, strict=True))
        )
    given, wanted = as_number(answer), as_number(expected)
    if given is None or wanted is None:
        return given is wanted and str(answer).strip().lower() == str(expected).strip().lower()
    return math.isclose(given, wanted, rel_tol=tolerance, abs_tol=tolerance)


def as_number(answer: Any) -> float | None:
    """The number that an answer is or writes, tensors of one number too; None if it is none."""
    answer = answer.tolist() if hasattr(answer, "tolist") else answer
    text = str(answer).strip().lower().replace(",", "")
    percent, text = text.endswith("%"), text.removesuffix("%").strip()
    try:
        value = float(Fraction(text.replace(" ", ""))) if "/" in text else float(text)
    except (ValueError, ZeroDivisionError):
        return None
    return value / 100 if percent else value
