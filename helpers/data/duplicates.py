"""Questions that occur twice, exactly or nearly: the usual way in which a test set leaks into training.

Two questions are exact duplicates if they are equal but for case, spaces, characters that show nothing, and
Unicode form. They are near duplicates if they hold the same numbers in the same order and share at least 90%
of their three-word runs. Numbers have to agree because a word problem with other numbers is another problem,
however alike the words are.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from math import ceil
from typing import Any, NamedTuple

from helpers.text import without_invisible

# A number, one character of Chinese, Japanese or Korean, a word, or a sign that is not sentence punctuation.
TOKEN = re.compile(
    r"\d+(?:\.\d+)?|[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\d_]+|[^\w\s.,;:!?'\"。，；：！？、]"
)


class DuplicateGroup(NamedTuple):
    """Records that ask the same. `indices` are ascending positions in the list that was searched."""

    kind: str  # "exact" or "near"
    indices: tuple[int, ...]


def find_duplicates(records: Sequence[dict[str, Any]], threshold: float = 0.9) -> list[DuplicateGroup]:
    """Groups of records whose questions (instruction and input) are the same or nearly so.

    An instruction that all records share is left out: else short inputs would look alike below a long one.

    Args:
        records: examples with `instruction` and `input`.
        threshold: share of three-word runs in common (Jaccard) from which two questions count as near
            duplicates.

    Returns:
        Groups of two or more, in order of their first record; `exact` if all in it are equal.
    """
    first: dict[str, int] = {}
    parent = list(range(len(records)))
    texts = _questions(records)
    for index, text in enumerate(texts):
        parent[index] = first.setdefault(text, index)
    for a, b in _near_pairs({index: text for text, index in first.items()}, threshold):
        parent[max(_root(parent, a), _root(parent, b))] = min(_root(parent, a), _root(parent, b))
    groups = defaultdict(list)
    for index in range(len(records)):
        groups[_root(parent, index)].append(index)
    return [
        DuplicateGroup("exact" if len({texts[i] for i in group}) == 1 else "near", tuple(group))
        for group in groups.values()
        if len(group) > 1
    ]


def exact_repeats(records: Sequence[dict[str, Any]]) -> list[tuple[int, ...]]:
    """Positions of records that ask the very same, in groups of two or more, in order of their first."""
    groups = defaultdict(list)
    for index, text in enumerate(_questions(records)):
        groups[text].append(index)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _questions(records: Sequence[dict[str, Any]]) -> list[str]:
    """What each record asks, in the form in which questions are compared."""
    shared = len({record["instruction"] for record in records}) == 1 and all(
        record.get("input") for record in records
    )
    return [
        _normal(record["input"] if shared else f"{record['instruction']}\n{record.get('input') or ''}")
        for record in records
    ]


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", without_invisible(text)).casefold().split())


def _root(parent: list[int], index: int) -> int:
    while parent[index] != index:
        parent[index] = parent[parent[index]]
        index = parent[index]
    return index


def _near_pairs(texts: dict[int, str], threshold: float) -> list[tuple[int, int]]:
    """Pairs of indices at or over the threshold.

    Comparing all pairs of 10,000 records would take minutes. Two sets that share 90% must share one of their
    rarest 10% of members, so only records that do are compared (prefix filtering; exact, no pair is missed).
    """
    blocks = defaultdict(list)
    runs = {}
    for index, text in texts.items():
        tokens = TOKEN.findall(text)
        runs[index] = {tuple(tokens[i : i + 3]) for i in range(max(1, len(tokens) - 2))}
        blocks[tuple(token for token in tokens if token[0].isdigit())].append(index)
    counts = Counter(run for members in runs.values() for run in members)
    pairs = []
    for block in blocks.values():
        holders = defaultdict(list)
        for index in block:
            mine = runs[index]
            rare = sorted(mine, key=lambda run: (counts[run], run))[
                : len(mine) - ceil(threshold * len(mine)) + 1
            ]
            for other in sorted({other for run in rare for other in holders[run]}):
                shared = len(mine & runs[other])
                if shared >= threshold * (len(mine) + len(runs[other]) - shared):
                    pairs.append((other, index))
            for run in rare:
                holders[run].append(index)
    return pairs
