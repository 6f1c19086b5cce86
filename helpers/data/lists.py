"""The task of notebook 10: "Name exactly 5 birds, separated by commas", and what is known about the answers.

    train, held_out = list_problems()
    items = read_items("Robin, owl, and an eagle.")       # ["robin", "owl", "eagle"]
    [is_known(item, "birds") for item in items]           # [True, True, True]

`data/kinds_of_things.json` has a list of known members for each kind of thing.
"""

import itertools
import json
import random
import re
from functools import cache
from typing import Any

from helpers.paths import ROOT

COUNTS = range(3, 9)
ASKED = (
    "Name exactly {count} {kind}, separated by commas. Write nothing else.",
    "List exactly {count} {kind}, separated by commas. Write nothing else.",
    "Write down exactly {count} {kind}, separated by commas and nothing else.",
)
HELD_OUT = (
    "fruits",
    "cities",
    "musical instruments",
    "pieces of clothing",
    "body parts",
    "birds",
    "vehicles",
    "shapes",
    "school subjects",
    "feelings",
    "desserts",
    "rooms of a house",
)


@cache
def _members() -> dict[str, list[str]]:
    return json.loads((ROOT / "data" / "kinds_of_things.json").read_text(encoding="utf-8"))


@cache
def known_members() -> dict[str, frozenset[str]]:
    """For each kind of thing its known members, in every spelling that `is_known` compares."""
    return {
        kind: frozenset(itertools.chain.from_iterable(map(_spellings, members)))
        for kind, members in _members().items()
    }


def list_problems() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All problems: 450 of 25 kinds to train on, and 216 of 12 other kinds to test on.

    Each is a record with the kind as its `category`. There is no reference answer, so `output` says what to
    check: "5 birds".
    """
    problems = [
        {
            "instruction": asked.format(count=count, kind=kind),
            "input": "",
            "output": f"{count} {kind}",
            "category": kind,
        }
        for kind in known_members()
        for count in COUNTS
        for asked in ASKED
    ]
    held_out = [problem for problem in problems if problem["category"] in HELD_OUT]
    return [problem for problem in problems if problem["category"] not in HELD_OUT], held_out


def random_list(problem: dict[str, Any], chance: random.Random) -> str:
    """An answer to a problem: known members of its kind, as many as it asks for."""
    return ", ".join(chance.sample(_members()[problem["category"]], int(problem["output"].split()[0])))


def read_items(answer: str) -> list[str]:
    """The items of a comma-separated answer: lower case, without articles, "and" and full stops."""
    items = (" ".join(part.lower().split()).strip(" .") for part in answer.split(","))
    return [re.sub(r"^(and )?((an?|the) )?", "", item) for item in items]


def is_known(item: str, kind: str) -> bool:
    """Whether an item is a known member of a kind, in the singular or the plural.

    Raises:
        KeyError: there is no list of that kind.
    """
    return not known_members()[kind].isdisjoint(_spellings(item))


def _spellings(item: str) -> set[str]:
    """An item as it is, and what it may be the plural of."""
    endings = {"s": "", "es": "", "ies": "y", "ves": "f"}
    return {item} | {item.removesuffix(end) + own for end, own in endings.items() if item.endswith(end)}


def repeats(items: list[str]) -> bool:
    """Whether two of the items may be the same thing, in the singular and the plural."""
    return any(_spellings(one) & _spellings(other) for one, other in itertools.combinations(items, 2))
