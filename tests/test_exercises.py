"""The exercises: a wrong answer draws the hint that fits it, a right one in any form is taken.

`answers/NOTEBOOK.toml` has a table for each exercise: how what is said begins, and the answers that draw it.
Each is put where the cell says `= None  #` or `return None  # your code`. `before` is code to run first, and
`cells` are words of earlier cells of the notebook, to run after it. `base_model` is there.
"""

import re
import tomllib
from typing import Any

import pytest
from texts import LESSONS, code_cells, source

from helpers.exercise import as_number, check_exercise, same
from helpers.paths import ROOT

ANSWERS = {path.stem: tomllib.loads(path.read_text()) for path in (ROOT / "tests/answers").glob("*.toml")}
EXERCISES = {
    (notebook, int(number)): hints
    for notebook, table in sorted(ANSWERS.items())
    for number, hints in table.items()
    if number.isdigit()
}
NONE, CODE = "= None  #", "return None  # your code"


def code_of(notebook: str) -> list[str]:
    return [source(cell) for cell in code_cells(ROOT / "notebooks" / f"{notebook}.ipynb")]


def cell_with(notebook: str, words: str) -> str:
    [text] = [text for text in code_of(notebook) if words in text]
    return text


@pytest.fixture(scope="module")
def names(base_model) -> dict[str, dict[str, Any]]:
    """What each notebook's earlier cells define for its exercises."""
    left: dict[str, dict[str, Any]] = {}
    for notebook, table in ANSWERS.items():
        left[notebook] = {"base_model": base_model, "check_exercise": check_exercise, "same": same}
        for code in [
            table.get("before", ""),
            *(cell_with(notebook, words) for words in table.get("cells", [])),
        ]:
            exec(code, left[notebook])
    return left


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda key: f"{key[0][:2]}.{key[1]}")
def test_each_answer_draws_its_hint(exercise, names, capsys):
    notebook, number = exercise
    code, hints = cell_with(notebook, f"check_exercise({number},"), EXERCISES[exercise]

    def said(answer: str) -> str:
        tried = code.replace(NONE, f"= {answer}  #").replace(CODE, f"return {answer}  # your code")
        exec(tried, dict(names[notebook]))
        return capsys.readouterr().out.strip()

    assert len(re.findall(f"{NONE}|{CODE}", code)) == 1, "one place for the answer"
    assert said("None") == f"Exercise {number}: not tried yet."
    for hint, answers in hints.items():
        for answer in answers:
            told = said(answer)
            assert told.startswith(hint if hint.startswith("Right") else f"Hint: {hint}"), (answer, told)
    wrong = [answer for hint, answers in hints.items() if not hint.startswith("Right") for answer in answers]
    assert len(wrong) >= 3 and any(hint.startswith("Right") for hint in hints)


def test_every_exercise_has_answers():
    checked = {
        (notebook, int(number))
        for notebook in (path.stem for path in LESSONS)
        for code in code_of(notebook)
        for number in re.findall(r"check_exercise\((\d+),", code)
    }
    assert checked == EXERCISES.keys()


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        (5, 5),
        ("5", 5),
        (" 5.0 ", 5),
        ("1,248", 1248),
        ("8%", 0.08),
        ("100/1248", 100 / 1248),
        ("-3e-2", -0.03),
    ],
)
def test_a_number_is_read_in_any_form(answer, number):
    assert same(answer, number) and not same(answer, 6)


def test_what_is_no_number_is_compared_as_text():
    assert [as_number(text) for text in ("1 / 0", "five", [5], None)] == [None] * 4
    assert same(" Yes", "yes") and not same("yes", 1) and not same("no", "yes")
    assert same((1, "2"), [1, 2]) and not same([1], [1, 2]) and not same(1, [1])


def test_a_check_is_quiet_until_tried_and_never_ends_in_a_traceback(capsys):
    def hint(double):
        return None if same([double(1), double(2)], [2, 4]) else "twice as much"

    def half_done(n):
        return 2 if n == 1 else None

    def broken(n):
        return n / 0

    not_tried = (None, "", [], lambda n: None)
    for answer in (*not_tried, half_done, broken, lambda: 2, 3, lambda n: 2, lambda n: f"{2 * n}"):
        check_exercise(7, answer, hint)
    told = capsys.readouterr().out.splitlines()
    assert told[:4] == ["Exercise 7: not tried yet."] * 4
    assert "returns nothing for (2)" in told[4] and "at `return n / 0`" in told[5]
    assert "takes 0 positional arguments" in told[6] and "can't use" in told[7]
    assert told[8:] == ["Hint: twice as much", "Right."]
