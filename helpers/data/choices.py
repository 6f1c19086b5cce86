"""Multiple-choice records: the choices go below the question, each with its letter, and one is the answer."""

import string
from typing import Any

from helpers.data.values import plain_text, text_of
from helpers.errors import DataError

COLUMNS = ("choices", "options")
ANSWERS = ("answer", "answerKey", "answer_idx", "answer_index", "label")
LETTERS = string.ascii_uppercase
SHAPE = "'choices' must be a list of at least two texts; the answer their place (from 0), letter or text"


def columns_of(row: dict[str, Any]) -> list[str]:
    """The columns of a multiple-choice record that hold the choices and the answer; none if it is not one."""
    answer = [name for name in ANSWERS if row.get(name) is not None][:1]
    if "question" not in row or not answer:
        return []
    if whole := [name for name in COLUMNS if row.get(name)][:1]:
        return whole + answer
    apart = [letter for letter in LETTERS if letter in row] if row.keys() & {"A", "B"} else []
    return apart + answer if apart else []


def read_choices(row: dict[str, Any]) -> dict[str, Any]:
    """A record of the course.

    Raises:
        DataError: the choices are not texts, or the answer is none of them.
    """
    *columns, answer = columns_of(row)
    choices = _choices(row[columns[0]] if columns[0] in COLUMNS else {name: row[name] for name in columns})
    letter = _letter(row[answer], choices, answer)
    listed = "\n".join(f"{name}. {text}" for name, text in choices.items())
    return {
        "instruction": f"{text_of(row, 'question')}\n{listed}",
        "input": "",
        "output": letter,
        "answer": letter,
    }


def _choices(value: Any) -> dict[str, str]:
    """Letter to text."""
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        texts, names = value["text"], value.get("label") or list(LETTERS[: len(value["text"])])
    elif isinstance(value, dict):
        texts, names = list(value.values()), list(value)
    elif isinstance(value, list):
        texts, names = value, list(LETTERS[: len(value)])
    else:
        raise DataError("the choices are no list", SHAPE)
    found = [(plain_text(name) or "").strip() for name in names], [plain_text(text) or "" for text in texts]
    choices = dict(zip(*found, strict=False))
    if (
        len(choices) < 2
        or len(choices) != len(texts)
        or not all(map(str.strip, [*choices, *choices.values()]))
    ):
        raise DataError("the choices are not two or more texts, each with a letter", SHAPE)
    return choices


def _letter(answer: Any, choices: dict[str, str], column: str) -> str:
    """The letter of the right choice."""
    names, text = list(choices), (plain_text(answer) or "").strip()
    right = {name for name, choice in choices.items() if text in (name, choice.strip())}
    counts = isinstance(answer, int) and not isinstance(answer, bool) and text not in names
    if counts or not right:  # a place, from 0
        right = {names[place] for place in range(len(names)) if text == str(place)}
    if len(right) != 1:
        several = "could be several" if right else "is none"
        raise DataError(
            f"field '{column}' is {text[:40]!r}, which {several} of the {len(choices)} choices", SHAPE
        )
    return right.pop()
