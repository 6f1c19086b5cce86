"""The chat template that a model is given makes the tokens of its training, or refuses."""

import json
import re

import pytest
from chat_templates import tokenizer_of
from jinja2 import TemplateError
from tiny_models import make_adapter, save_llama
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, GenerationConfig

from helpers.train.chat_template import chat_template, end_tokens
from helpers.train.models import load_tokenizer
from helpers.train.renderers import answer_tokens, get_renderer, prompt_tokens
from helpers.weights import adapter_to_peft, merge_adapter

SYSTEM = {"role": "system", "content": "You help users of a booking site.\nBe brief."}
QUESTION = {"role": "user", "content": "Can I cancel room 12 – today?"}
ANSWER = {"role": "assistant", "content": "Yes, until 18:00."}
CONVERSATIONS = {
    "a question": [QUESTION],
    "a question with white space around it": [QUESTION | {"content": "\n Can I cancel? "}],
    "a system message": [SYSTEM, QUESTION],
    "two turns": [QUESTION, ANSWER, QUESTION | {"content": "And tomorrow?"}],
    "three turns after a system message": [SYSTEM, QUESTION, ANSWER, QUESTION, ANSWER, QUESTION],
}


@pytest.fixture(scope="module")
def tokenizer(base_model):
    return load_tokenizer(base_model)


def tokens(tokenizer, template, turns, **options):
    options = {"add_generation_prompt": True, "return_dict": False} | options
    return tokenizer.apply_chat_template(turns, chat_template=template, **options)


@pytest.mark.parametrize(
    "name", ["guide", "template", "qwen3_instruct", "qwen3_disable_thinking", "nemotron3"]
)
def test_prompts_are_those_of_training(tokenizer, name):
    renderer = get_renderer(name, tokenizer)
    template = chat_template(renderer)
    for kind, turns in CONVERSATIONS.items():
        if name == "guide" and "turns" in kind:
            continue  # refused: see below
        stripped = [turn | {"content": turn["content"].strip()} for turn in turns]
        given = stripped if name == "template" else turns  # a model's own template may keep white space
        assert tokens(tokenizer, template, given) == prompt_tokens({"messages": stripped}, renderer)
    assert template.endswith(tokenizer.chat_template) == (name == "template")


def test_a_whole_conversation_ends_as_in_training(tokenizer):
    renderer, record = get_renderer("qwen3_instruct", tokenizer), {"messages": [QUESTION, ANSWER]}
    whole = tokens(tokenizer, chat_template(renderer), record["messages"], add_generation_prompt=False)
    assert whole == prompt_tokens(record, renderer) + answer_tokens(record, renderer)


def test_no_system_prompt_that_training_never_saw(tokenizer):
    """The local model's own template adds one, and so does the training with `template`."""
    said = {
        name: tokenizer.decode(tokens(tokenizer, chat_template(get_renderer(name, tokenizer)), [QUESTION]))
        for name in ("guide", "qwen3_instruct", "template")
    }
    assert [name for name, text in said.items() if "named SmolLM" in text] == ["template"]


@pytest.mark.parametrize(
    ("family", "name", "refused"),
    [
        ("qwen3_instruct", "qwen3_instruct", []),
        ("qwen3", "qwen3", []),
        ("llama3", "llama3", ["tools", "thinking"]),
        ("gemma", "template", ["tools"]),
    ],
)
def test_the_models_own_template_is_kept_where_it_agrees(tokenizer, family, name, refused):
    """With a refusal of what it leaves out and training would not."""
    own = tokenizer_of(family, tokenizer)
    template = chat_template(get_renderer(name, own))
    assert template.endswith(own.chat_template)
    assert re.findall(r"can't write ([a-z ]+) with", template) == refused


def test_the_token_that_begins_each_text_is_written_once(tokenizer):
    own = tokenizer_of("llama3", tokenizer)
    begin = ("<|begin_of_text|>", own.bos_token_id)
    own.backend_tokenizer.post_processor = TemplateProcessing(f"{begin[0]} $A", special_tokens=[begin])
    renderer = get_renderer("guide", own)
    prompt = prompt_tokens({"messages": [QUESTION]}, renderer)
    assert tokens(own, chat_template(renderer), [QUESTION]) == prompt
    assert prompt[0] == begin[1] not in prompt[1:]


@pytest.mark.parametrize(
    ("name", "turns", "message"),
    [
        ("role_colon", [QUESTION], "can't write a question"),  # one text has other tokens than its pieces
        ("guide", [QUESTION, ANSWER, QUESTION], "can't write several turns"),  # for the same reason
        ("guide", [QUESTION, {"role": "tool", "content": "12"}], "can't write tools"),
        ("guide", [SYSTEM, SYSTEM, QUESTION], "no system message can follow system"),
        ("qwen3_instruct", [{"role": "narrator", "content": "Meanwhile"}], "no narrator message"),
        ("qwen3_instruct", [QUESTION, ANSWER], "must be of the user"),
    ],
)
def test_what_training_had_no_tokens_for_is_refused(tokenizer, name, turns, message):
    with pytest.raises(TemplateError, match=message):
        tokens(tokenizer, chat_template(get_renderer(name, tokenizer)), turns)


@pytest.mark.parametrize("name", ["guide", "qwen3_instruct"])
def test_a_merged_model_and_its_adapter_carry_the_format_of_training(tmp_path, base_model, name):
    """In whatever places the base model has a template of its own, and with its own end tokens kept."""
    base = save_llama(tmp_path / "base", base_model)
    config = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "{{ 'of the base' }}"}))
    (base / "chat_template.json").write_text(json.dumps({"chat_template": "{{ 'of the base' }}"}))
    (base / "generation_config.json").write_text(
        json.dumps({"eos_token_id": 0, "do_sample": True, "temperature": 0.6})
    )
    renderer = get_renderer(name, base_model)
    adapter = make_adapter(tmp_path / "adapter", base, layers=2)
    merge_adapter(base, adapter, tmp_path / "merged", renderer=renderer)
    merged = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokens(merged, None, [SYSTEM, QUESTION]) == prompt_tokens(
        {"messages": [SYSTEM, QUESTION]}, renderer
    )
    assert not any("of the base'" in file.read_text() for file in (tmp_path / "merged").glob("*.json*"))
    generation = GenerationConfig.from_pretrained(tmp_path / "merged")
    assert generation.eos_token_id == [0, *end_tokens(renderer)] and generation.temperature == 0.6
    peft = adapter_to_peft(base, adapter, tmp_path / "peft", renderer=renderer)
    assert (peft / "chat_template.jinja").read_text() == merged.chat_template
