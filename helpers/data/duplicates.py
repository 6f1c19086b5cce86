"""Questions that occur twice, exactly or nearly: the usual way in which a test set leaks into training.

Two questions are exact duplicates if they are equal but for case, spaces, characters that show nothing, and
Unicode form. They are near duplicates if they hold the same numbers in the same order and share at least 90%
of their three-word runs. Numbers have to agree because a word problem with other numbers is another problem,
however alike the words are.

The question of a conversation is everything before its last answer. A conversation that goes on from another
one's question is a near duplicate of it: it holds that question, and an answer.
"""

import json
import re
import unicodedata
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np

from helpers.data.conversation import answer_of, conversation, has_conversation
from helpers.text import without_invisible

# A number, one character of Chinese, Japanese or Korean, a word, or a sign that is not sentence punctuation.
TOKEN = re.compile(
    r"\d+(?:\.\d+)?|[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\d_]+|[^\w\s.,;:!?'\"。，；：！？、]"
)
RUN = 3  # words
LETTERS = str.maketrans("0123456789", "ghijklmnop")
AT_ONCE = 20_000  # pairs compared in one go


class DuplicateGroup(NamedTuple):
    """Records that ask the same. `indices` are ascending positions in the list that was searched."""

    kind: str  # "exact" or "near"
    indices: tuple[int, ...]


def find_duplicates(records: Sequence[dict[str, Any]], threshold: float = 0.9) -> list[DuplicateGroup]:
    """Groups of records whose questions (instruction and input, or all turns before the last answer) are the
    same or nearly so.

    An instruction that all records share is left out, and a system message that several share counts as one
    word: else short inputs would look alike below a long one.

    Args:
        records: examples with `instruction` and `input`, and perhaps `messages`.
        threshold: share of three-word runs in common (Jaccard) from which two questions count as near
            duplicates.

    Returns:
        Groups of two or more, in order of their first record; `exact` if all in it are equal.
    """
    return find_repeats(records, threshold)[0]


def find_repeats(
    records: Sequence[dict[str, Any]], threshold: float = 0.9
) -> tuple[list[DuplicateGroup], list[tuple[int, ...]]]:
    """What `find_duplicates` finds, and the positions of records that ask the very same, in groups of two or
    more, in order of their first.
    """
    heads = Counter(_head(record) for record in records if has_conversation(record))
    texts = _questions(records, heads)
    first: dict[str, int] = {}
    same = [first.setdefault(text, index) for index, text in enumerate(texts)]
    parent = list(same)
    for index, record in enumerate(records):
        if has_conversation(record):
            for earlier in _prompts(record, heads)[:-1]:
                _join(parent, first.get(earlier, index), index)
    _join_near(parent, first, threshold)
    groups = _groups(_root(parent, index) for index in range(len(records)))
    found = [
        DuplicateGroup("exact" if len({same[i] for i in group}) == 1 else "near", group) for group in groups
    ]
    return found, _groups(same)


def _groups(firsts: Iterable[int]) -> list[tuple[int, ...]]:
    """Positions with the same first one, where there are several."""
    groups = defaultdict(list)
    for index, first in enumerate(firsts):
        groups[first].append(index)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _questions(records: Sequence[dict[str, Any]], heads: Counter[str]) -> list[str]:
    """What each record asks, in the form in which questions are compared."""
    shared = len({record["instruction"] for record in records}) == 1 and all(
        record.get("input") and not has_conversation(record) for record in records
    )
    return [
        _prompts(record, heads)[-1]
        if has_conversation(record)
        else _normal(record["input"] if shared else f"{record['instruction']}\n{record.get('input') or ''}")
        for record in records
    ]


def _prompts(record: dict[str, Any], heads: Counter[str]) -> list[str]:
    """What a conversation says before each turn of the assistant; what it asks is the last.

    Args:
        heads: how many records have the same head: one that several share counts as a word.
    """
    head = _head(record)
    word = sha256(head.encode()).hexdigest().translate(LETTERS) if heads[head] > 1 else head
    parts, found = [_normal(word)] if head else [], []
    for message in conversation(record)[_has_system(record) :]:
        if message["role"] == "assistant":
            found.append(" ".join(parts))
        parts.append(_normal(answer_of(message)))
    return found


def _has_system(record: dict[str, Any]) -> bool:
    return conversation(record)[0]["role"] == "system"


def _head(record: dict[str, Any]) -> str:
    """What stands before the turns: a system message, and the tools."""
    system = conversation(record)[0]["content"] if _has_system(record) else ""
    tools = json.dumps(record["tools"], ensure_ascii=False) if record.get("tools") else ""
    return "\n".join(filter(None, (system, tools)))


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", without_invisible(text)).casefold().split())


def _root(parent: Any, index: int) -> int:
    while parent[index] != index:
        parent[index] = parent[parent[index]]
        index = parent[index]
    return index


def _join(parent: Any, a: int, b: int) -> None:
    a, b = _root(parent, a), _root(parent, b)
    parent[max(a, b)] = min(a, b)


def _join_near(parent: list[int], first: dict[str, int], threshold: float) -> None:
    """Join the texts that are at or over the threshold.

    Args:
        parent: of each record, by position; texts that are equal have the same.
        first: text to the first record that has it.
    """
    blocks, runs_of = _runs(first)
    records = np.fromiter(first.values(), np.int64, len(first))
    own = np.arange(len(first))  # the parents of texts
    for one, other in _candidates(blocks, runs_of, threshold):
        apart = _roots(own, one) != _roots(own, other)
        one, other = one[apart], other[apart]
        alike = _alike(runs_of, one, other, threshold)
        for a, b in zip(one[alike].tolist(), other[alike].tolist(), strict=True):
            _join(own, a, b)
    for text in np.flatnonzero(own != np.arange(len(own))).tolist():
        _join(parent, int(records[text]), int(records[own[text]]))


class _Runs(NamedTuple):
    """The three-word runs of each text: text `i` has `runs[start[i]:start[i + 1]]`, numbers under `kinds`."""

    start: np.ndarray
    runs: np.ndarray
    kinds: int

    def sizes(self) -> np.ndarray:
        return np.diff(self.start)

    def keys(self, texts: np.ndarray) -> np.ndarray:
        """Of each run of some texts, a number for both: the place of the text in `texts`, and the run."""
        sizes = self.sizes()[texts]
        ends = np.cumsum(sizes)
        rows = np.arange(sizes.sum()) + np.repeat(self.start[texts] - ends + sizes, sizes)
        return np.repeat(np.arange(len(texts)), sizes) * self.kinds + self.runs[rows]


def _runs(texts: dict[str, int]) -> tuple[np.ndarray, _Runs]:
    """A number for the numbers in each text, the same where they agree; and the runs of the texts.

    A text of under three words is one run.
    """
    words, numbers = {"": 0}, {}
    blocks, lengths, flat = array("i"), array("i"), array("i")
    for text in texts:
        found = TOKEN.findall(text)
        blocks.append(numbers.setdefault(tuple([word for word in found if word[0].isdigit()]), len(numbers)))
        found += [""] * (RUN - len(found))
        lengths.append(len(found))
        flat.extend([words.setdefault(word, len(words)) for word in found])
    tokens, sizes = np.asarray(flat, np.int64), np.asarray(lengths, np.int64)
    text_of = np.repeat(np.arange(len(sizes)), sizes)
    begins = np.flatnonzero(text_of[: 1 - RUN] == text_of[RUN - 1 :])  # the run stays within a text
    pairs = np.unique(tokens[begins] * len(words) + tokens[begins + 1], return_inverse=True)[1]
    runs, ids = np.unique(pairs * len(words) + tokens[begins + 2], return_inverse=True)
    kinds = max(1, len(runs))
    keys = np.sort(text_of[begins] * kinds + ids)
    keys = keys[np.flatnonzero(np.diff(keys, prepend=-1))]
    start = np.searchsorted(keys, np.arange(len(sizes) + 1) * kinds)
    return np.asarray(blocks), _Runs(start, keys % kinds, kinds)


def _candidates(
    blocks: np.ndarray, texts: _Runs, threshold: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of texts that may be alike, in pieces.

    Comparing all pairs of 10,000 texts would take minutes. Two sets that share 90% must share one of their
    rarest 10% of members, so only texts that do are compared (prefix filtering; exact, no pair is missed).
    """
    sizes = texts.sizes()
    text_of = np.repeat(np.arange(len(sizes)), sizes)
    order = np.lexsort((texts.runs, np.bincount(texts.runs)[texts.runs], text_of))
    place = np.arange(len(order)) - np.repeat(texts.start[:-1], sizes)
    rare = order[place < (sizes - np.ceil(threshold * sizes) + 1)[text_of]]
    runs, holders = texts.runs[rare], text_of[rare]
    order = np.lexsort((holders, runs, blocks[holders]))
    runs, holders = runs[order], holders[order]
    step, left = 1, np.arange(len(holders))
    while True:
        left = left[left + step < len(holders)]
        same = (runs[left] == runs[left + step]) & (blocks[holders[left]] == blocks[holders[left + step]])
        left = left[same]
        if not len(left):
            return
        for piece in range(0, len(left), AT_ONCE):
            some = left[piece : piece + AT_ONCE]
            yield holders[some], holders[some + step]
        step += 1


def _alike(texts: _Runs, one: np.ndarray, other: np.ndarray, threshold: float) -> np.ndarray:
    """Which of the pairs are at or over the threshold."""
    sizes = texts.sizes()
    keys = np.sort(np.concatenate((texts.keys(one), texts.keys(other))))
    twice = keys[1:][keys[1:] == keys[:-1]]
    shared = np.bincount(twice // texts.kinds, minlength=len(one))
    return shared >= threshold * (sizes[one] + sizes[other] - shared)


def _roots(parent: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """The root of each, without Python's own loop."""
    while True:
        above = parent[indices]
        if np.array_equal(above, indices):
            return indices
        indices = above
