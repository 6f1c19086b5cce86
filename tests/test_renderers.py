"""From records to tokens: the guide's format, the model's own chat template, and the cookbook's renderers."""

import pytest

from helpers.errors import DataError
from helpers.train import answer_text, answer_tokens, build_datum, get_renderer, prompt_tokens
from helpers.train.models import load_tokenizer

ONE = {
    "instruction": " What is 2 + 2?",
    "input": "Use words.\n",
    "output": "Step 1: add.\nFinal answer: four ",
}
PLAIN = {"instruction": "Hello", "output": "Hi"}


@pytest.fixture(scope="module")
def tokenizer(base_model):
    return load_tokenizer(base_model)


def trained(datum):
    """The tokens of a datum with weight, and those before the first of them."""
    tokens = [*datum.model_input.to_ints()[:1], *datum.loss_fn_inputs["target_tokens"].tolist()]
    weights = [0.0, *datum.loss_fn_inputs["weights"].tolist()]
    return [t for t, w in zip(tokens, weights, strict=True) if w], tokens[: weights.index(1.0)]


@pytest.mark.parametrize(
    ("record", "prompt", "answer"),
    [
        (
            ONE,
            "Instruction: What is 2 + 2?\nInput: Use words.\nResponse:",
            " Step 1: add.\nFinal answer: four\n\n",
        ),
        (PLAIN, "Instruction: Hello\nResponse:", " Hi\n\n"),
    ],
)
def test_the_guide_s_tokens_are_those_of_its_text(tokenizer, record, prompt, answer):
    renderer = get_renderer("guide", tokenizer)
    assert prompt_tokens(record, renderer) == tokenizer.encode(prompt)
    assert answer_tokens(record, renderer) == tokenizer.encode(answer)
    assert trained(build_datum(record, renderer)) == (tokenizer.encode(answer), tokenizer.encode(prompt))
    assert renderer.get_stop_sequences() == ["\n\n", "Instruction:"]
    assert answer_text(answer_tokens(record, renderer), renderer) == record["output"].strip()


def test_an_answer_at_which_the_guide_would_stop_is_refused(tokenizer):
    with pytest.raises(DataError, match="'Hello' holds '\\\\n\\\\n'"):
        build_datum(PLAIN | {"output": "One.\n\nTwo."}, get_renderer("guide", tokenizer))
