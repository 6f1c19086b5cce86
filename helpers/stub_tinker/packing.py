"""Token sequences as rows of one matrix: which go into a pass together, and where each row stands.

In training, sequences of one *family*, such as the samples of a group or the two answers of a preference
pair, begin alike. A causal model's numbers for that beginning are the same in each, so a token of it gets one
row, where their gradients add up.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F

from helpers.stub_tinker.kernels import STEP, Copies, Gather, Spread, round_up, rows_for
from helpers.stub_tinker.prefixes import Piece

# Of the memory for a row, up to so much is for its place in attention's grid: with 512 tokens, where the
# probabilities take most. A place without a row of its own takes only that.
PLACE = 0.4
TOGETHER = 512  # positions up to which prompts are read together: of longer ones, one is a large product


@dataclass
class Alike:
    """Either one long sequence, or several that share a known beginning, if any, and have equally many tokens
    of their own, rounded up to a multiple of `STEP`: attention takes them at once, in a grid of (members,
    length).

    Attributes:
        rows: of the pass, (tokens,).
        places: of those rows in the grid.
    """

    known: Sequence[Piece]
    members: int
    length: int
    rows: torch.Tensor
    places: torch.Tensor

    def spread(self, rows: torch.Tensor) -> torch.Tensor:
        """(rows, heads, dim) of a pass -> (members, length, heads, dim), zeros where there is no token."""
        grid = rows.new_zeros(self.members * self.length, *rows.shape[1:])
        return grid.index_copy_(0, self.places, rows[self.rows]).unflatten(0, (-1, self.length))


class Packed:
    """Token sequences laid end to end, and where each row stands in the padded (sequence, position) grid.

    Rows after the last token are filler, up to `rows_for` them.

    Args:
        known: for each sequence, the pieces that stand before it, if there are any.
        families: for each sequence, its family; empty if none share rows.

    Attributes:
        size: rows that stand for tokens.
        places: the row of each token of each sequence, (tokens,).
    """

    def __init__(
        self,
        sequences: list[list[int]],
        device: torch.device,
        known: Sequence[Sequence[Piece]] = (),
        families: Sequence[int] = (),
    ):
        self.known = known or [()] * len(sequences)
        self.lengths = [len(s) for s in sequences]
        self.starts = [0, *torch.tensor(self.lengths).cumsum(0).tolist()]
        places, firsts = _rows(sequences, families)
        self.size = len(firsts)
        filler = rows_for(self.size) - self.size
        self.longest = round_up(max(self.lengths), STEP)
        few = 4 if self.longest <= 128 else 2 if self.longest <= 256 else 1  # there is room for few long ones
        count = math.ceil((self.starts[-1] + filler) / self.longest)
        self.count = round_up(max(len(sequences), count), few)
        tokens = torch.tensor([t for s in sequences for t in s])
        within = torch.cat([torch.arange(n) for n in self.lengths])
        owner = torch.repeat_interleave(torch.arange(len(sequences)), torch.tensor(self.lengths))
        before = torch.tensor([sum(map(len, pieces)) for pieces in self.known])
        self.tokens = F.pad(tokens[firsts], (0, filler)).to(device)
        self.positions = F.pad((before[owner] + within)[firsts], (0, filler)).to(device)
        slots = owner * self.longest + within
        free = torch.ones(self.count * self.longest, dtype=torch.bool).index_fill_(0, slots, False)
        beyond = free.nonzero()[:filler, 0]  # filler stands after sequences that are shorter than the longest
        # row -> place in the grid
        self.slots = torch.cat([slots[firsts], beyond]).to(device)
        self.places = places.to(device)
        self._copies = None
        if self.size < len(places):
            rows = torch.cat([places, torch.arange(self.size, self.size + filler)])
            self._copies = rows.to(device), torch.cat([slots, beyond]).to(device)

    def pad(self, rows: torch.Tensor) -> torch.Tensor:
        """(rows, heads, dim) -> (sequences, heads, longest, dim), zeros where there is no token."""
        slots = self.slots
        if self._copies:
            copied, slots = self._copies
            rows = Copies.apply(rows, copied)
        grid = Spread.apply(rows, slots, self.count * self.longest)
        return grid.view(self.count, self.longest, *rows.shape[1:]).transpose(1, 2)

    def unpad(self, grid: torch.Tensor) -> torch.Tensor:
        """(sequences, heads, longest, dim) -> (rows, heads·dim)."""
        return Gather.apply(grid.transpose(1, 2).reshape(self.count * self.longest, -1), self.slots)

    @cached_property
    def alike(self) -> list[Alike]:
        assert len(self.places) == self.size, "rows are shared in training only"
        members = defaultdict(list)
        for i, (pieces, length) in enumerate(zip(self.known, self.lengths, strict=True)):
            own = round_up(length, STEP)
            apart = i if sum(map(len, pieces)) + own > TOGETHER else -1
            members[*map(id, pieces), apart, own].append(i)
        return [self._alike(some, own) for (*_, own), some in members.items()]

    def _alike(self, members: list[int], length: int) -> Alike:
        own = [torch.arange(self.lengths[i]) for i in members]
        rows, places = (
            torch.cat([first + within for first, within in zip(firsts, own, strict=True)])
            for firsts in ([self.starts[i] for i in members], [n * length for n in range(len(members))])
        )
        device = self.tokens.device
        return Alike(self.known[members[0]], len(members), length, rows.to(device), places.to(device))

    def distinct(self, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The first token of each pair of a row and its targets, in the rows' order, and the pair of each
        token.

        Args:
            targets: (tokens, k)
        """
        if not self._copies:
            return np.arange(self.size), np.arange(self.size)
        pairs = np.column_stack([self.places.cpu().numpy(), targets])
        _, first, of_token = np.unique(pairs, axis=0, return_index=True, return_inverse=True)
        return first, of_token


def _rows(sequences: list[list[int]], families: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The row of each token, and the first token of each row."""
    total = sum(map(len, sequences))
    if len(set(families)) == len(families):
        return torch.arange(total), torch.arange(total)
    rows: dict[tuple[int, int], int] = {}  # (row before or family, token) -> row
    places, firsts = [], []
    for sequence, family in zip(sequences, families, strict=True):
        row = -1 - family
        for token in sequence:
            if (row, token) not in rows:
                rows[row, token] = len(rows)
                firsts.append(len(places))
            row = rows[row, token]
            places.append(row)
    return torch.tensor(places), torch.tensor(firsts)


def micro_batches(sequences: list[list[int]], max_tokens: int) -> list[tuple[list[int], list[int]]]:
    """Which sequences go through the model together, families side by side and short ones first.

    Returns:
        (indices of sequences, their families), of up to `max_tokens` rows or one longer sequence. Where rows
        are shared, there are fewer, since attention's grid still has a place for each token and for padding.
    """
    batches: list[tuple[list[int], list[int]]] = []
    rows = longest = 0
    for index, family, shared in _in_order(sequences):
        length = len(sequences[index])
        again = shared if batches and batches[-1][1][-1] == family else 0
        if not batches or _too_many(
            rows + length - again, batches[-1][0], max(longest, length), again, max_tokens
        ):
            batches.append(([], []))
            rows = longest = again = 0
        batches[-1][0].append(index)
        batches[-1][1].append(family)
        rows, longest = rows + length - again, max(longest, length)
    return batches


def _too_many(rows: int, batch: list[int], longest: int, again: int, max_tokens: int) -> bool:
    """Whether a micro-batch with one sequence more takes more memory than `max_tokens` rows."""
    grid = (len(batch) + 1) * round_up(longest, STEP)
    return rows > max_tokens or (again > 0 and rows + PLACE * (grid - rows) > max_tokens)


def _in_order(sequences: list[list[int]]) -> list[tuple[int, int, int]]:
    """(index, family, tokens that it has in common with the one before) of all sequences.

    Of two neighbours in the dictionary, the second is of the first's family if they have half of the shorter
    one in common.
    """
    ordered = sorted(range(len(sequences)), key=lambda i: sequences[i])
    families: list[list[int]] = []
    for place, index in enumerate(ordered):
        before, sequence = sequences[ordered[place - 1]] if place else [], sequences[index]
        if not families or 2 * common_beginning(before, sequence) < min(len(before), len(sequence)):
            families.append([])
        families[-1].append(index)
    for family in families:
        family.sort(key=lambda i: (len(sequences[i]), i))
    families.sort(key=lambda family: (len(sequences[family[-1]]), min(family)))
    return [
        (index, number, common_beginning(sequences[before], sequences[index]))
        for number, family in enumerate(families)
        for before, index in zip([family[0], *family], family, strict=False)
    ]


def common_beginning(one: list[int], other: list[int]) -> int:
    """How many tokens two sequences have in common at their beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
