"""Records that are conversations: their form, the readers of chat data, and what is refused."""

import json

import pytest
from texts import fenced, prose

from helpers.data import find_duplicates, load_data, load_part, split_data
from helpers.data.conversation import call_text, conversation, conversation_record, has_conversation
from helpers.data.forms import normalise_record
from helpers.data.split import Split
from helpers.errors import DataError
from helpers.evaluate import choose_task
from helpers.paths import ROOT
from helpers.train.guide import guide_prompt

USER, ANSWER = {"role": "user", "content": "And 3?"}, {"role": "assistant", "content": "4."}
SYSTEM = {"role": "system", "content": "Be brief."}


def call(name: str, arguments: str, **more) -> dict:
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


def test_a_plain_pair_stays_in_the_one_turn_form():
    record = conversation_record([USER, ANSWER])
    assert record == {"instruction": "And 3?", "input": "", "output": "4."} and not has_conversation(record)
    assert conversation(record) == [USER, ANSWER]
    both = {"instruction": " Add. ", "input": "1\n", "output": " 2"}
    assert [message["content"] for message in conversation(both, "\nInput: ")] == ["Add.\nInput: 1", "2"]
    assert conversation(both)[0]["content"] == "Add.\n1"


@pytest.mark.parametrize(
    ("messages", "tools"),
    [
        ([SYSTEM, USER, ANSWER], None),
        ([USER, ANSWER, USER, ANSWER], None),
        ([USER, ANSWER | {"trainable": True}], None),
        ([USER, ANSWER | {"reasoning_content": "3 + 1"}], None),
        ([USER, ANSWER], [{"type": "function", "function": {"name": "add"}}]),
    ],
)
def test_more_than_a_pair_keeps_its_messages_and_a_view_of_one_turn(messages, tools):
    record = conversation_record(messages, tools)
    assert has_conversation(record) and conversation(record) == messages and record.get("tools") == tools
    assert (record["instruction"], record["input"], record["output"]) == ("And 3?", "", "4.")


def test_calls_have_one_text_whatever_the_order_of_their_arguments():
    text = call_text([call("add", '{"b": 2, "a": {"y": "é", "x": 1}}', id="1")])
    assert text == '{"name": "add", "arguments": {"a": {"x": 1, "y": "é"}, "b": 2}}'
    assert text == call_text([call("add", '{"a": {"x":1,"y":"\\u00e9"},"b":2}')])
    assert call_text([call("a", "{}"), call("b", "{")]) == (
        '[{"name": "a", "arguments": {}}, {"name": "b", "arguments": "{"}]'
    )
    answer = {"role": "assistant", "content": "One moment.", "tool_calls": [call("a", "{}")]}
    assert conversation_record([USER, answer])["output"] == '{"name": "a", "arguments": {}}'


# reading


def turn(role: str, content: str | None = "x", **more) -> dict:
    return {"role": role, "content": content} | more


def asks(*calls: dict) -> list[dict]:
    """A question that is answered by tool calls."""
    return [USER, turn("assistant", None, tool_calls=list(calls))]


def shared(*turns: str) -> list[dict]:
    """ShareGPT's turns: from, value, from, value, …"""
    return [{"from": role, "value": text} for role, text in zip(turns[::2], turns[1::2], strict=True)]


TALK = [turn("user", "Hi"), turn("assistant", "Ho"), USER, ANSWER]
PAIR = [USER, ANSWER]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = turn("assistant", "", tool_calls=[call("add", '{"a": 1}')])
NAMED = turn("assistant", "", tool_calls=[call("add", '{"a": 1}', id="c1")])
LEGACY = turn("assistant", None, function_call=call("add", '{"a": 1}')["function"])
RESULT = turn("tool", "4", tool_call_id="c1", name="add")
ALPACA = {"instruction": "And 3?", "output": "4."}
SHARED = shared("human", "And 3?", "gpt", "4.")
CALLED = '{"name": "add", "arguments": {"a": 1}}'


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"messages": TALK}, TALK),
        ({"messages": [SYSTEM, *PAIR]}, [SYSTEM, *PAIR]),
        ({"messages": [turn("developer", "Be brief."), *PAIR]}, [SYSTEM, *PAIR]),
        ({"messages": [turn("system", ""), *PAIR]}, [turn("system", ""), *PAIR]),
        ({"messages": [turn("user", [{"type": "text", "text": text} for text in ("And ", "3?")]), ANSWER]},
         PAIR),
        ({"messages": json.dumps(TALK)}, TALK),
        ({"messages": PAIR, "system": "Be brief."}, [SYSTEM, *PAIR]),
        ({"messages": [SYSTEM, *PAIR], "system": "Be brief."}, [SYSTEM, *PAIR]),
        ({"messages": [USER, ANSWER | {"refusal": None, "tool_calls": [], "name": ""}]}, PAIR),
        # marks and thinking
        ({"messages": [USER, ANSWER | {"weight": 1}]}, [USER, ANSWER | {"trainable": True}]),
        ({"messages": [USER, ANSWER | {"weight": 0}, *PAIR]}, [USER, ANSWER | {"trainable": False}, *PAIR]),
        ({"messages": [USER, ANSWER | {"trainable": False}]}, [USER, ANSWER | {"trainable": False}]),
        *(
            ({"messages": [USER, ANSWER | {key: "3 + 1"}]}, [USER, ANSWER | {"reasoning_content": "3 + 1"}])
            for key in ("reasoning_content", "reasoning", "thinking")
        ),
        # tools
        ({"messages": [USER, NAMED | {"content": None}, RESULT, ANSWER]}, [USER, NAMED, RESULT, ANSWER]),
        ({"messages": asks(call("add", {"a": 1}, id=None))}, [USER, CALL]),
        ({"messages": asks({"name": "add", "arguments": {"a": 1}})}, [USER, CALL]),
        ({"messages": [USER, LEGACY, turn("function", "4", name="add"), ANSWER]},
         [USER, CALL, turn("tool", "4", name="add"), ANSWER]),
        ({"messages": [USER, CALL, turn("tool", ""), ANSWER]}, [USER, CALL, turn("tool", ""), ANSWER]),
        # ShareGPT
        ({"conversations": SHARED}, PAIR),
        ({"conversation": shared("user", "And 3?", "model", "4.")}, PAIR),
        ({"conversations": shared("system", "Be brief.") + SHARED}, [SYSTEM, *PAIR]),
        ({"conversations": SHARED, "system": "Be brief."}, [SYSTEM, *PAIR]),
        ({"conversations": [*SHARED, SHARED[0], SHARED[1] | {"weight": 0}]},
         [*PAIR, USER, ANSWER | {"trainable": False}]),
        ({"conversations": [SHARED[0], *shared("function_call", CALLED, "observation", "4"), SHARED[1]]},
         [USER, CALL, turn("tool", "4"), ANSWER]),
        # Alpaca
        (ALPACA | {"system": "Be brief."}, [SYSTEM, *PAIR]),
        (ALPACA | {"instruction": "And\n", "input": " 3?", "history": [["Hi", "Ho"]]},
         [*TALK[:2], turn("user", "And\n3?"), ANSWER]),
        (ALPACA | {"history": '[["Hi", "Ho"]]', "system": "Be brief."}, [SYSTEM, *TALK]),
        (ALPACA | {"history": [], "system": ""}, PAIR),
        # prompt and completion
        ({"prompt": [USER], "completion": [ANSWER]}, PAIR),
        ({"prompt": [SYSTEM, *TALK[:3]], "completion": [ANSWER]}, [SYSTEM, *TALK]),
        ({"prompt": [SYSTEM, USER], "completion": "4."}, [SYSTEM, *PAIR]),
    ],
)  # fmt: skip
def test_every_form_of_chat_becomes_the_same_messages(row, messages):
    record = normalise_record(row | {"category": "sums", "answer": 4})
    assert conversation(record) == messages and has_conversation(record) == (messages != PAIR)
    assert (record["category"], record["answer"]) == ("sums", "4")
    assert normalise_record(json.loads(json.dumps(record))) == record  # as a split's file has it


def test_an_input_is_put_as_in_a_record_of_one_turn():
    plain = ALPACA | {"instruction": "And", "input": "3?"}
    told = normalise_record(plain | {"system": "Be brief."})
    assert conversation(told) == [SYSTEM, turn("user", "And\n3?"), ANSWER]
    assert guide_prompt(plain) == "Instruction: And\nInput: 3?\nResponse:"
    assert guide_prompt(told) == f"Be brief.\n\n{guide_prompt(plain)}"
    later = normalise_record(plain | {"input": "5?", "history": [["And\n3?", "4."]]})
    assert [group.indices for group in find_duplicates([plain, later])] == [(0, 1)]  # asked on the way


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), [TOOL["function"]], [TOOL | {"strict": None}]])
@pytest.mark.parametrize("row", [{"messages": PAIR}, {"prompt": [USER], "completion": [ANSWER]}, ALPACA])
def test_tools_make_a_conversation(row, tools):
    record = normalise_record(row | {"tools": tools})
    assert record["tools"] == [TOOL] and conversation(record) == PAIR
    assert normalise_record(row | {"tools": "[]", "functions": []}) == ALPACA | {"input": ""}


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"messages": [USER, ANSWER | {"audio": 1, "mood": 2}]}, ["message 1", "'audio', 'mood'"]),
        ({"messages": [USER | {"name": "Ann"}, ANSWER]}, ["message 0", "'name'"]),
        ({"messages": [USER | {"tool_calls": [call("a", "{}")]}, ANSWER]}, ["message 0", "'tool_calls'"]),
        ({"messages": [turn("user", [{"type": "image_url"}]), ANSWER]}, ["message 0", "'image_url'"]),
        ({"messages": PAIR, "images": ["a.png"]}, ["'images' is filled", "into the text"]),
        ({"messages": [USER, turn("critic")]}, ["message 1", "'critic'", "roles are system, user"]),
        ({"messages": [USER, {"content": "x"}]}, ["message 1 has no 'role'"]),
        ({"messages": None}, ["'messages' is null, not a list"]),
        ({"messages": "[{]"}, ["'messages'", "JSON"]),
        ({"messages": ["Hi"]}, ["list of objects"]),
        ({"messages": []}, ["there is no message"]),
        ({"messages": [*PAIR, USER]}, ["last message is of role 'user'", "end the conversation"]),
        ({"messages": [SYSTEM, ANSWER]}, ["no message is of role 'user'"]),
        ({"messages": [USER, ANSWER | {"content": None}]}, ["message 1", "'content' is missing"]),
        ({"messages": [USER | {"content": " "}, ANSWER]}, ["message 0", "'content' is empty"]),
        ({"messages": [USER, ANSWER | {"weight": 0.5}]}, ["message 1", "weight 0.5", "1 to train"]),
        ({"messages": [USER, ANSWER | {"weight": 1, "trainable": False}]}, ["message 1", "weight 1"]),
        ({"messages": [USER, ANSWER | {"thinking": "a", "reasoning": "b"}]}, ["'reasoning' and 'thinking'"]),
        ({"messages": [SYSTEM, *PAIR], "system": "Be long."}, ["different system messages"]),
        ({"messages": PAIR, "instruction": "And", "input": "4?"}, ["'instruction' is 'And'"]),
        ({"messages": PAIR, "output": "5."}, ["'output' is '5.'", "by 'messages' it is '4.'"]),
        ({"messages": [USER, turn("tool", "4"), ANSWER]}, ["message 1", "tool's answer", "no call"]),
        ({"messages": [USER, NAMED, RESULT | {"tool_call_id": "c2"}, ANSWER]}, ["message 2", "'c2'"]),
        ({"messages": asks(call("a", "{"))}, ["call 0", "no JSON"]),
        ({"messages": asks(call("a", "[1]"))}, ["call 0", "a list, not an"]),
        ({"messages": asks(call("a", '{"x": 1, "x": 2}'))}, ["'x' occurs twice"]),
        ({"messages": asks(call("", "{}"))}, ["call 0 has no 'name'"]),
        ({"messages": asks(call("a", "{}", type="custom"))}, ["'custom'"]),
        ({"messages": asks(call("a", "{}", mood=1))}, ["'mood'"]),
        ({"messages": PAIR, "tools": [{"type": "function", "function": {}}]}, ["tool 0 has no 'name'"]),
        ({"messages": PAIR, "tools": [TOOL | {"mood": 1}]}, ["tool 0", "'mood'"]),
        ({"messages": PAIR, "tools": "add"}, ["'tools' is text, not a list"]),
        ({"messages": PAIR, "tools": [TOOL], "functions": [TOOL]}, ["both 'tools' and 'functions'"]),
        ({"conversations": shared("human", "q", "function_call", "add 1")}, ["message 1", "JSON"]),
        ({"messages": asks(call("a", "{}"), call("b", {"x": object()}))}, ["call 1", "no JSON"]),
        ({"messages": asks({"id": "c1", "function": {"name": "a", "id": "c2"}})}, ["call 0", "two ids"]),
        ({"messages": [USER, CALL | {"function_call": {"name": "a"}}]}, ["message 1", "two ways"]),
        ({"messages": [turn("user", [{"type": "text", "text": "a", "b": 1}]), ANSWER]}, ["part with 'b'"]),
        ({"messages": PAIR, "tools": [{"name": "a", "parameters": "{"}]}, ["tool 0", "'parameters'"]),
        ({"question": "1 + 1?", "answer": "#### 2", "system": "Brief."}, ["'system' is filled"]),
        (ALPACA | {"thinking": "Hm."}, ["'thinking' is filled"]),
        (ALPACA | {"history": [["Hi"]]}, ["'history', turn 0 is no pair", "pairs"]),
        (ALPACA | {"history": [["Hi", ""]]}, ["'history', turn 0", "is empty"]),
        (ALPACA | {"history": "Hi"}, ["'history' is text, not a list"]),
        (ALPACA | {"reasoning_content": "3 + 1"}, ["'reasoning_content' is filled"]),
        ({"prompt": [USER], "completion": [USER]}, ["last message is of role 'user'"]),
    ],
)  # fmt: skip
def test_what_is_no_conversation_is_refused_by_name(row, parts):
    with pytest.raises(DataError) as caught:
        normalise_record(row)
    assert [part for part in parts if part not in str(caught.value)] == [], caught.value
    assert caught.value.fix


def test_columns_of_a_conversation_can_be_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        json.dumps({"dialog": PAIR, "rules": "Be brief.", "functions": [TOOL], "instruction": "x"})
    )
    [record] = load_data(str(path), "messages=dialog,system=rules,tools=functions").records
    assert conversation(record) == [SYSTEM, *PAIR] and record["tools"] == [TOOL]
    path.write_text(json.dumps({"text": "3?", "label": "4.", "rules": "Be brief."}))
    [record] = load_data(str(path), "input=text,output=label,system=rules", "And").records
    assert conversation(record) == [SYSTEM, turn("user", "And\n3?"), ANSWER]
    for columns, instruction, words in (
        ("messages=text,output=label", "", "'output' has no place"),
        ("messages=text", "Add.", "instruction has no place"),
    ):
        with pytest.raises(DataError, match=words):
            load_data(str(path), columns, instruction)


# the split


def chats(count: int, *, turns: int = 1, system: str = "", tag: str = "w") -> list[dict]:
    """Conversations that share their system message and no word beside it."""
    before = [turn("system", system)] if system else []
    return [
        conversation_record(
            before
            + [
                turn(
                    role, f"{tag}{number}{role} {tag}{number}x{place} {tag}{number}y{place}".translate(DIGITS)
                )
                for place in range(turns)
                for role in ("user", "assistant")
            ]
        )
        for number in range(count)
    ]


DIGITS = str.maketrans("0123456789", "ghijklmnop")
LONG = (
    "You help customers of a shop that sells old lamps, and answer every question politely and in one line."
)


def test_a_split_of_conversations_is_saved_and_comes_back(tmp_path):
    records = chats(30, turns=2, system=LONG)
    records[0]["messages"][2]["trainable"] = False
    records[0]["tools"] = [TOOL]
    split = split_data(records)
    assert split.report["duplicates"]["records"] == 0 and split.count_leaks() == 0
    paths = [tmp_path / name for name in split.save(tmp_path)]
    assert [load_part(path) for path in paths] == [split.train, split.validation, split.test]
    text = paths[0].read_text().replace(split.train[0]["output"], "other", 1)
    paths[0].write_text(text)
    with pytest.raises(DataError, match=r"train\.json, index 0: 'output' is '.*', but by 'messages' it is"):
        load_part(paths[0])


def end(record: dict, *more: dict) -> dict:
    return conversation_record([*conversation(record), *more])


@pytest.mark.parametrize(
    ("other", "kind"),
    [
        (lambda one: one, "exact"),
        (lambda one: conversation_record([*one["messages"][:-1], turn("assistant", "No.")]), "exact"),
        (lambda one: end(one, USER, ANSWER), "near"),  # goes on from the question of the other
        (
            lambda one: conversation_record(
                [one["messages"][0] | {"content": "Be long."}, *one["messages"][1:]]
            ),
            None,
        ),
        (lambda one: conversation_record([*one["messages"][:-1], turn("user", "And 4?"), ANSWER]), None),
        (lambda one: conversation_record(one["messages"], [TOOL]), None),
        (lambda one: conversation_record([one["messages"][0], *one["messages"][-2:]]), None),
    ],
)
def test_conversations_are_compared_by_all_before_the_last_answer(other, kind):
    records = chats(12, turns=2, system=LONG)
    records.append(other(records[3]))
    expected = [(kind, (3, 12))] if kind else []
    assert find_duplicates(records) == expected
    assert split_data(records).count_leaks() == 0
    assert Split([records[3]], records[4:6], [records[12]]).count_leaks() == bool(kind)


def test_one_system_message_makes_no_duplicates_and_a_text_in_it_is_compared():
    assert find_duplicates(chats(5, system=LONG) + chats(5, system=LONG.upper(), tag="v")) == []
    asked = [turn("user", "Sum it up."), ANSWER]
    letters = "abcdefghijklmnopqrstuvwxyz"
    pages = [" ".join(f"{tag}{word}" for tag in tags for word in letters) for tags in ("uv", "wx", "yz")]
    records = [conversation_record([turn("system", page), *asked]) for page in (*pages, pages[1] + " end")]
    assert find_duplicates(records) == [("near", (1, 3))]


def test_a_pair_and_a_conversation_may_ask_the_same():
    plain = {"instruction": "And", "input": "3?", "output": "4."}
    marked = conversation_record([turn("user", "And\n3?"), ANSWER | {"trainable": True}])
    assert find_duplicates([plain, marked]) == [("exact", (0, 1))]
    task, records = choose_task("math", [*chats(12), plain, marked | {"output": "5."}])
    assert "1 question with different answers" in task.check(split_data(records))[0]


def test_the_examples_of_the_page_on_forms_are_read(tmp_path):
    path, forms = tmp_path / "a.json", []
    for example in fenced(prose(ROOT / "docs/data-forms.md"), "json"):
        path.write_text(f"[{example}]")
        data = load_data(str(path))
        forms.append((data.sources[0].form.removeprefix("JSON, "), has_conversation(data.records[0])))
        assert data.sources[0].unused == [], example
    pair, talk = [("guide or Alpaca", False), ("guide or Alpaca", True)], ("chat", True)
    prompts = [("JSON", False), ("prompt and completion", True)]
    others = [(name, False) for name in ("multiple choice", "GSM8K", "s1K")]
    assert forms == [*pair, *[talk] * 4, *prompts, *others]
