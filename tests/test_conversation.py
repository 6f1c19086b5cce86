"""Records that are conversations: their form, the readers of chat data, and what is refused."""

import json

import pytest

from helpers.data import load_data
from helpers.data.conversation import call_text, conversation, conversation_record, has_conversation
from helpers.data.forms import normalise_record
from helpers.errors import DataError

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
        (ALPACA | {"instruction": "And", "input": "3?", "history": [["Hi", "Ho"]]},
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
