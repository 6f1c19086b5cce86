"""Records that are conversations: their form, the readers of chat data, and what is refused."""

import pytest

from helpers.data.conversation import call_text, conversation, conversation_record, has_conversation

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
