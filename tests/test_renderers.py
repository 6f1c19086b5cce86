"""From records to tokens: the guide's format, the model's own chat template, and the cookbook's renderers."""

from functools import cache

import pytest
from chat_templates import FAMILIES, tokenizer_of
from commands import course

from helpers.data.conversation import conversation_record
from helpers.errors import DataError
from helpers.train import answer_text, answer_tokens, build_datum, get_renderer, prompt_tokens
from helpers.train.audit import CONVERSATIONS, audit
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


@pytest.fixture(scope="module")
def tokenizers(tokenizer):
    return cache(lambda family: tokenizer_of(family, tokenizer))


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


# conversations

SYSTEM = {"role": "system", "content": "Be brief."}
ASKED = {"role": "user", "content": "Where is it?"}
FIRST = {"role": "assistant", "content": "On the way."}
AGAIN = {"role": "user", "content": "When will it come?"}
THEN = {"role": "assistant", "content": "Tomorrow."}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "look_up", "description": "d", "parameters": {"type": "object"}},
    }
]
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"order": 7}'}}
    ],
}
FOUND = {"role": "tool", "content": "due 3 May", "tool_call_id": "c1", "name": "look_up"}
TWO = [ASKED, FIRST, AGAIN, THEN]
ALL, LAST = "all_assistant_messages", "last_assistant_message"


def thinking(message, thoughts="Look at the date."):
    return message | {"reasoning_content": thoughts}


@pytest.mark.parametrize("family", ["chatml", "llama3", "phi3", "mistral", "gemma", "qwen3_instruct"])
@pytest.mark.parametrize("train_on", [LAST, ALL])
def test_a_template_s_tokens_are_its_own_and_each_answer_is_trained_on(tokenizers, family, train_on):
    renderer = get_renderer("template", tokenizers(family))
    messages = TWO if family in ("mistral", "gemma") else [SYSTEM, *TWO]
    datum, end = build_datum(conversation_record(messages), renderer, train_on=train_on), FAMILIES[family].end
    whole = renderer.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    read = datum.model_input.to_ints()  # it ends where the last answer does
    assert read == whole[: len(read)] and end not in renderer.tokenizer.decode(whole[len(read) + 1 :])
    learned, before = trained(datum)
    start = " " if family == "mistral" else ""
    answers = [FIRST, THEN] if train_on == ALL else [THEN]
    assert renderer.tokenizer.decode(learned) == "".join(f"{start}{m['content']}{end}" for m in answers)
    asked = messages[: messages.index(answers[0])]
    assert before == renderer.tokenizer.apply_chat_template(
        asked, tokenize=True, return_dict=False, add_generation_prompt=True
    )
    assert renderer.tokenizer.convert_tokens_to_ids(end) in renderer.get_stop_sequences()
    assert answer_text(answer_tokens(conversation_record(messages), renderer), renderer) == "Tomorrow."


def test_a_prompt_s_tokens_stay_its_own_where_they_would_merge_with_the_answer_s(tokenizer):
    # of two line breaks, this tokenizer makes one token at the end of a text, and two before a word
    renderer = get_renderer("template", tokenizer_of("llama3", tokenizer, pattern=False))
    datum = build_datum(conversation_record(TWO), renderer)
    assert trained(datum)[1] == prompt_tokens(conversation_record(TWO), renderer)
    with pytest.raises(DataError, match="doesn't begin the answer in message 2"):
        build_datum(conversation_record(TWO), renderer, train_on=ALL)


@pytest.mark.parametrize("name", ["template", "qwen3"])
def test_where_earlier_answers_are_written_otherwise_only_the_last_is_trained_on(tokenizers, name):
    renderer = get_renderer(name, tokenizers("qwen3"))
    record = conversation_record([SYSTEM, ASKED, thinking(FIRST), AGAIN, thinking(THEN)])
    learned, before = trained(build_datum(record, renderer))
    text = renderer.tokenizer.decode(learned)
    assert text == "<think>\nLook at the date.\n</think>\n\nTomorrow.<|im_end|>"
    assert before == prompt_tokens(record, renderer) and "date" not in renderer.tokenizer.decode(before)
    assert answer_text(learned, renderer) == "Tomorrow."
    for messages in (record["messages"], TWO):
        with pytest.raises(DataError, match=r"message [23] otherwise .* train on the last answer only"):
            build_datum(conversation_record(messages), renderer, train_on=ALL)


@pytest.mark.parametrize("name", ["template", "qwen3_instruct"])
def test_tools_and_calls_are_written_and_read_back(tokenizers, name):
    renderer = get_renderer(name, tokenizers("qwen3_instruct"))
    record = conversation_record([SYSTEM, ASKED, CALL], TOOLS)
    prompt, answer = prompt_tokens(record, renderer), answer_tokens(record, renderer)
    text = renderer.tokenizer.decode(prompt)
    assert text.startswith("<|im_start|>system\nBe brief.\n\n# Tools") and '"name": "look_up"' in text
    assert (
        answer_text(answer, renderer) == record["output"] == '{"name": "look_up", "arguments": {"order": 7}}'
    )
    longer = conversation_record([SYSTEM, ASKED, CALL, FOUND, THEN], TOOLS)
    learned, _ = trained(build_datum(longer, renderer, train_on=ALL))
    assert learned == answer + answer_tokens(longer, renderer)
    written = renderer.tokenizer.apply_chat_template(
        renderer_form(longer["messages"]), tools=TOOLS, tokenize=True, return_dict=False
    )
    assert (prompt + answer)[:-1] == written[: len(prompt + answer) - 1]


def renderer_form(messages):
    """With arguments as an object, as `transformers` takes them."""
    function = {"name": "look_up", "arguments": {"order": 7}}
    calls = [{"id": "c1", "type": "function", "function": function}]
    return [message | ({"tool_calls": calls} if "tool_calls" in message else {}) for message in messages]


@pytest.mark.parametrize(
    ("name", "family", "messages", "tools", "reason"),
    [
        ("guide", "chatml", [ASKED, CALL], None, "no way to write tool calls"),
        ("guide", "chatml", [ASKED, CALL, FOUND, THEN], None, "no way to write"),
        ("guide", "chatml", [ASKED, thinking(THEN)], None, "no way to write thinking"),
        ("guide", "chatml", [ASKED, THEN], TOOLS, "no way to declare tools"),
        ("role_colon", "chatml", [ASKED, CALL], None, "leaves out the tool calls of message 2"),
        ("llama3", "llama3", [ASKED, THEN], TOOLS, "no way to declare tools"),
        ("llama3", "llama3", [ASKED, thinking(THEN)], None, "multimodal content"),
        ("llama3", "llama3", [ASKED, CALL, FOUND, THEN], None, "leaves out the tool calls of message 2"),
        ("qwen3_disable_thinking", "qwen3", [ASKED, thinking(THEN)], None, "thinking turned off"),
        ("template", "llama3", [ASKED, CALL, FOUND, THEN], None, "leaves out the tool calls of message 2"),
        ("template", "chatml", [ASKED, THEN], TOOLS, "leaves out the tools"),
        ("template", "chatml", [ASKED, thinking(THEN)], None, "leaves out the reasoning of the last message"),
        ("template", "gemma", [SYSTEM, ASKED, THEN], None, "System role not supported"),
        ("template", "r1", [ASKED, THEN], None, "after its prompt"),
        ("template", "text", [ASKED, THEN], None, "no special token"),
        (
            "template",
            "chatml",
            [ASKED, {"role": "assistant", "content": "a<|im_end|>b"}],
            None,
            "control token",
        ),
    ],
)
def test_what_a_renderer_can_t_write_is_refused_by_name(tokenizers, name, family, messages, tools, reason):
    renderer = get_renderer(name, tokenizers(family))
    record = conversation_record(messages, tools) | {"instruction": "Where is it?"}
    with pytest.raises(DataError, match=reason):
        build_datum(record | {"messages": messages}, renderer)


@pytest.mark.parametrize("name", ["guide", "template", "qwen3_instruct"])
@pytest.mark.parametrize(
    ("first", "then", "train_on", "learned"),
    [
        ({"trainable": True}, {}, LAST, ["On the way.", "Tomorrow."]),
        ({"trainable": False}, {}, ALL, ["Tomorrow."]),
        ({}, {"trainable": False}, ALL, ["On the way."]),
        ({}, {}, "customized", ["On the way.", "Tomorrow."]),
        ({}, {}, "last_assistant_turn", ["Tomorrow."]),
    ],
)
def test_a_message_s_own_mark_goes_before_the_setting(tokenizer, name, first, then, train_on, learned):
    renderer = get_renderer(name, tokenizer)
    record = conversation_record([ASKED, FIRST | first, AGAIN, THEN | then])
    tokens, _ = trained(build_datum(record, renderer, train_on=train_on))
    text = renderer.tokenizer.decode(tokens)
    assert text.replace("<|im_end|>", "\n\n").split("\n\n")[:-1] == (
        [f" {answer}" for answer in learned] if name == "guide" else learned
    )
    assert answer_text(answer_tokens(record, renderer), renderer) == "Tomorrow."


def test_nothing_to_train_on_is_refused(tokenizer):
    record = conversation_record([ASKED, FIRST | {"trainable": False}])
    for train_on, reason in ((ALL, "no token of it is trained on"), ("all_tokens", "has a weight")):
        with pytest.raises(DataError, match=reason):
            build_datum(record, get_renderer("guide", tokenizer), train_on=train_on)
    every = build_datum(PLAIN, get_renderer("template", tokenizer), train_on="all_tokens")
    assert set(every.loss_fn_inputs["weights"].tolist()) == {1.0}
    with pytest.raises(DataError, match="only the assistant's messages"):
        build_datum(PLAIN, get_renderer("template", tokenizer), train_on="all_messages")


# the audit

EVERY = set(CONVERSATIONS)
SHOWN = {"a tool call", "a tool's answer"}
THINKS = {"thinking"}
SYSTEM_TOO = {"a system message", "several turns"}


@pytest.mark.parametrize(
    ("name", "family", "refused", "differs"),
    [
        ("qwen3", "qwen3", set(), set()),
        ("qwen3_disable_thinking", "qwen3", THINKS, set()),
        ("qwen3_instruct", "qwen3_instruct", set(), THINKS),
        ("qwen3_instruct", "chatml", set(), SHOWN | THINKS),
        ("llama3", "llama3", SHOWN | THINKS | {"thinking in an earlier turn"}, set()),
        ("template", "qwen3", set(), set()),
        ("template", "qwen3_instruct", THINKS, set()),
        ("template", "chatml", SHOWN | THINKS, set()),
        ("template", "llama3", SHOWN | THINKS, set()),
        ("template", "phi3", SHOWN | THINKS, set()),
        ("template", "gemma", SHOWN | THINKS | SYSTEM_TOO, set()),
        ("template", "mistral", SHOWN | THINKS | SYSTEM_TOO, set()),
        ("template", "r1", EVERY, set()),
        ("guide", "chatml", SHOWN | THINKS | {"thinking in an earlier turn"}, {"a question"} | SYSTEM_TOO),
    ],
)
def test_the_audit_compares_with_the_chat_template(tokenizers, name, family, refused, differs):
    findings = audit(get_renderer(name, tokenizers(family)))
    assert [finding.name for finding in findings] == list(CONVERSATIONS)
    assert {finding.name for finding in findings if finding.refused} == refused
    assert {finding.name for finding in findings if finding.difference} == differs
    assert all(finding.tokens > 10 for finding in findings if finding.name not in refused | differs)
    assert not any("record" in finding.refused for finding in findings)  # the reason alone


def test_check_template_shows_the_first_difference(base_model, tmp_path, capsys):
    status, out, _ = course(capsys, "check-template", str(base_model))
    assert status == 1 and "several turns: the same 64 tokens" in out
    shown = "a question: the prompt differs at token 2, after '<|im_start|>':\n    qwen3_instruct  'user"
    assert shown in out and "\n    chat template   'system\\nYou are a helpful" in out
    assert course(capsys, "check-template", str(base_model), "--renderer", "template")[0] == 0
    status, _, err = course(capsys, "check-template", str(base_model), "--renderer", "qwen9")
    assert status == 1 and "no prompt format 'qwen9'" in err


@pytest.mark.parametrize("mark", [{}, {"trainable": True}])
def test_an_unknown_train_on_is_refused(tokenizer, mark):
    record = conversation_record([ASKED, FIRST | mark, AGAIN, THEN])
    with pytest.raises(DataError, match="there is no train_on='typo'"):
        build_datum(record, get_renderer("template", tokenizer), train_on="typo")
