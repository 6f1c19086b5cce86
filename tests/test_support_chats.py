"""The support chats: a data set of conversations with system turns, and what it takes to learn them."""

import json
import re
from collections import Counter

import pytest

from helpers.paths import ROOT

DATA = ROOT / "data/support_chats.jsonl"


@pytest.fixture(scope="module")
def chats():
    return [json.loads(line) for line in DATA.read_text().splitlines()]


def test_the_ticket_follows_from_the_turns_before_it(chats):
    """By an independent reading: the rule from the system turn, the number from the user's last that has
    one.
    """
    for chat in chats:
        system, *turns, last = chat["messages"]
        reason, action, order, item = last["content"].removeprefix("Ticket: ").split(" | ")
        said = [turn["content"] for turn in turns if turn["role"] == "user"]
        rules = system["content"].partition("Rules: ")[2].partition(".")[0].split("; ")
        assert f"{reason} -> {action}" in rules
        assert order == f"order {re.findall(r'[0-9]{5}', ' '.join(said))[-1]}" and reason == chat["category"]
        assert any(f" {item}" in text for text in said)
        assert action not in said[-1] and item not in said[-1]  # the last question alone doesn't tell


def test_shops_turns_and_reasons_vary(chats):
    messages = [chat["messages"] for chat in chats]
    assert len(chats) == len({re.findall(r"[0-9]{5}", str(turns[-1]))[0] for turns in messages}) == 200
    assert (
        len({re.findall("(?:of|for) ([A-Z][^.]*)[.]", turns[0]["content"])[0] for turns in messages}) == 200
    )
    assert all(
        [turn["role"] for turn in turns] == ["system", *["user", "assistant"] * (len(turns) // 2)]
        for turns in messages
    )
    assert {len(turns) for turns in messages} == {5, 7, 9}
    assert set(Counter(chat["category"] for chat in chats).values()) == {50}
