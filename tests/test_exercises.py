"""The exercises of Part 2: a wrong answer draws the hint that fits it, a right one in any form is taken."""

import re

import pytest
from texts import code_cells, source

from helpers.paths import ROOT

NOTEBOOK = ROOT / "notebooks" / "08_lora_by_hand.ipynb"
NOT_TRIED = r"= None  #|return None  # your code"


def exercises() -> list[str]:
    return [source(cell) for cell in code_cells(NOTEBOOK) if re.search(NOT_TRIED, source(cell))]


@pytest.fixture(scope="module")
def layer() -> dict:
    """What the notebook's first cells define."""
    names: dict = {}
    code = next(source(cell) for cell in code_cells(NOTEBOOK) if "class LoRALinear" in source(cell))
    exec(code, names)
    return names


def said(number: int, edits: dict[str, str], names: dict, capsys) -> str:
    code = exercises()[number - 1]
    for old, new in edits.items():
        assert old in code
        code = code.replace(old, new)
    exec(code, dict(names))
    return capsys.readouterr().out.strip()


COUNT = "my_count = None"
FORWARD = "return None  # your code\n\n\nfixed"
NUMBERS = "return None  # your code"


@pytest.mark.parametrize(
    ("number", "edits", "answer"),
    [
        (1, {}, "Exercise 1: not tried yet."),
        (1, {COUNT: "my_count = 1"}, "Hint: write the gradient"),
        (1, {COUNT: "my_count = 2"}, "Hint: write the gradient"),
        (1, {COUNT: "my_count = 'none'"}, "Hint: write the gradient"),
        (1, {COUNT: "my_count = 0"}, "Right."),
        (1, {COUNT: "my_count = '0'"}, "Right."),
        (2, {}, "Exercise 2: not tried yet."),
        (2, {FORWARD: "return super().forward(x)\n\n\nfixed"}, "Hint: this is still the suspicious layer"),
        (2, {FORWARD: "return self.linear(x)\n\n\nfixed"}, "Hint: look at what `alpha`"),
        (2, {FORWARD: "return 1.0\n\n\nfixed"}, "Hint: return one tensor"),
        (2, {FORWARD: "return LoRALinear.forward(self, x)\n\n\nfixed"}, "Right."),
        (3, {}, "Exercise 3: not tried yet."),
        (3, {NUMBERS: "return r * m * n"}, "Hint: that's r times the whole layer"),
        (3, {NUMBERS: "return r * m"}, "Hint: A is r × n"),
        (3, {NUMBERS: "return 67584"}, "Hint: A is r × n"),
        (3, {NUMBERS: "return r * (m + n)"}, "Right."),
        (3, {NUMBERS: "return str(r * (m + n))"}, "Right."),
    ],
)
def test_each_answer_draws_its_hint(number, edits, answer, layer, capsys):
    assert said(number, edits, layer, capsys).startswith(answer)
