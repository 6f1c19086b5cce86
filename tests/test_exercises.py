"""The exercises of Part 2: a wrong answer draws the hint that fits it, a right one in any form is taken."""

import re

import pytest
from texts import code_cells, source

from helpers.paths import ROOT
from helpers.train import get_renderer, prompt_tokens
from helpers.train.models import load_tokenizer

TOKENS, LORA = "07_tokens_and_templates", "08_lora_by_hand"
NOT_TRIED = r"= None  #|return None  # your code"


def cells_with(notebook: str, pattern: str) -> list[str]:
    code = [source(cell) for cell in code_cells(ROOT / "notebooks" / f"{notebook}.ipynb")]
    return [text for text in code if re.search(pattern, text)]


@pytest.fixture(scope="module")
def defined(base_model) -> dict[str, dict]:
    """What the notebooks' earlier cells define for their exercises."""
    layer: dict = {}
    exec(cells_with(LORA, "class LoRALinear")[0], layer)
    tokens = {
        "tokenizer": load_tokenizer(base_model),
        "get_renderer": get_renderer,
        "prompt_tokens": prompt_tokens,
    }
    return {LORA: layer, TOKENS: tokens}


def said(notebook: str, number: int, edits: dict[str, str], names: dict, capsys) -> str:
    code = cells_with(notebook, NOT_TRIED)[number - 1]
    for old, new in edits.items():
        assert old in code
        code = code.replace(old, new)
    exec(code, dict(names))
    return capsys.readouterr().out.strip()


COUNT, CODE = "my_count = None", "return None  # your code"
FORWARD = "return None  # your code\n\n\nfixed"
NUMBERS = "return None  # your code"


@pytest.mark.parametrize(
    ("notebook", "number", "edits", "answer"),
    [
        (TOKENS, 1, {}, "Exercise 1: not tried yet."),
        (TOKENS, 1, {COUNT: "my_count = 15"}, "Hint: that's the number of characters"),
        (TOKENS, 1, {COUNT: "my_count = 5"}, "Hint: print the pieces"),
        (TOKENS, 1, {COUNT: "my_count = 'many'"}, "Hint: print the pieces"),
        (TOKENS, 1, {COUNT: "my_count = 13"}, "Right."),
        (TOKENS, 1, {COUNT: "my_count = '13'"}, "Right."),
        (TOKENS, 2, {}, "Exercise 2: not tried yet."),
        (TOKENS, 2, {CODE: "return weights_for(prompt, answer)"}, "Hint: target number i"),
        (TOKENS, 2, {CODE: "return [0.0, 0.0] + [1.0] * 4"}, "Hint: target number i"),
        (TOKENS, 2, {CODE: "return [0] * len(prompt) + [1] * len(answer)"}, "Hint: there's one target fewer"),
        (TOKENS, 2, {CODE: "return [0] * (len(prompt) - 1) + [1] * len(answer)"}, "Right."),
        (TOKENS, 3, {}, "Exercise 3: not tried yet."),
        (
            TOKENS,
            3,
            {CODE: "return f'Instruction: {question}\\nResponse: '  #"},
            "Hint: there's an extra space",
        ),
        (TOKENS, 3, {CODE: "return question  #"}, "Hint: print the guide's text"),
        (
            TOKENS,
            3,
            {CODE: "return 'Instruction: Add 2 and 3.\\nResponse:'  #"},
            "Hint: it fits this question only",
        ),
        (TOKENS, 3, {CODE: "return f'Instruction: {question}\\nResponse:'  #"}, "Right."),
        (LORA, 1, {}, "Exercise 1: not tried yet."),
        (LORA, 1, {COUNT: "my_count = 1"}, "Hint: write the gradient"),
        (LORA, 1, {COUNT: "my_count = 2"}, "Hint: write the gradient"),
        (LORA, 1, {COUNT: "my_count = 'none'"}, "Hint: write the gradient"),
        (LORA, 1, {COUNT: "my_count = 0"}, "Right."),
        (LORA, 1, {COUNT: "my_count = '0'"}, "Right."),
        (LORA, 2, {}, "Exercise 2: not tried yet."),
        (
            LORA,
            2,
            {FORWARD: "return super().forward(x)\n\n\nfixed"},
            "Hint: this is still the suspicious layer",
        ),
        (LORA, 2, {FORWARD: "return self.linear(x)\n\n\nfixed"}, "Hint: look at what `alpha`"),
        (LORA, 2, {FORWARD: "return 1.0\n\n\nfixed"}, "Hint: return one tensor"),
        (LORA, 2, {FORWARD: "return LoRALinear.forward(self, x)\n\n\nfixed"}, "Right."),
        (LORA, 3, {}, "Exercise 3: not tried yet."),
        (LORA, 3, {NUMBERS: "return r * m * n"}, "Hint: that's r times the whole layer"),
        (LORA, 3, {NUMBERS: "return r * m"}, "Hint: A is r × n"),
        (LORA, 3, {NUMBERS: "return 67584"}, "Hint: A is r × n"),
        (LORA, 3, {NUMBERS: "return r * (m + n)"}, "Right."),
        (LORA, 3, {NUMBERS: "return str(r * (m + n))"}, "Right."),
    ],
)
def test_each_answer_draws_its_hint(notebook, number, edits, answer, defined, capsys):
    assert said(notebook, number, edits, defined[notebook], capsys).startswith(answer)
