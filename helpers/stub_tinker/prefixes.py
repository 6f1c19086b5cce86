"""What was read of prompts, kept for prompts that begin with the same tokens.

Prompts are read in pieces of `PIECE` tokens, of which the last may be shorter. The attention of a piece is
computed in a shape that depends only on where it stands and on its own length, or beside other prompts' where
that gives the same bits. So its keys and values are the same, to the last bit, whatever comes after it, and
whether the pieces before it were read with it or earlier.

A prompt is found again only with the same weights and the same key. Otherwise, by the time that an answer
takes, one key could tell what another's prompts were.
"""

import itertools
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any
from weakref import WeakKeyDictionary

import torch

from helpers.stub_tinker.cache import Shelf
from helpers.stub_tinker.kernels import PIECE, STEP, round_up

POSITIONS = 8 * 1024  # that are kept of prompts: 190 MiB at 135M parameters


def digests(prompt: list[int]) -> list[bytes]:
    """For each piece of a prompt, a digest of all tokens up to its end."""
    digest, found = sha256(), []
    for start in range(0, len(prompt), PIECE):
        digest.update(array("q", prompt[start : start + PIECE]).tobytes())
        found.append(digest.digest())
    return found


@dataclass(eq=False)
class Piece:
    """Keys, times 1/√dim, and values of a piece, (layers, tokens, kv_heads, head_dim); if a prompt ended with
    it, also the final hidden state of its last token, (1, hidden).
    """

    keys: torch.Tensor
    values: torch.Tensor
    end: torch.Tensor | None
    used: tuple[int, int] = (0, 0)  # when, and of pieces used at once the last one first

    def __len__(self) -> int:
        return self.keys.shape[1]

    @property
    def room(self) -> int:
        """Positions that it counts as."""
        return round_up(len(self), STEP)


@dataclass(eq=False)
class Reading:
    """A prompt to read, once for all jobs that have it. Its length is that of what is left to read.

    Attributes:
        jobs: of the same key and the same weights.
        known: the pieces that it begins with.
        end: the final hidden state of its last token, (1, hidden), once it is known.
    """

    jobs: list[Any]
    known: list[Piece]
    end: Any = None

    @property
    def prompt(self) -> list[int]:
        return self.jobs[0].prompt

    @property
    def start(self) -> int:
        """The first position to read."""
        return sum(map(len, self.known))

    @property
    def tokens(self) -> list[int]:
        """The tokens to read."""
        return self.prompt[self.start :]

    def __len__(self) -> int:
        return len(self.prompt) - self.start

    @cached_property
    def _pieces(self) -> list[tuple]:
        """All pieces, each by what decides its numbers and who may have them."""
        job = self.jobs[0]
        return [(job.owner, id(job.adapter), digest) for digest in job.pieces]

    def join(self, others: list["Reading"], most: int) -> bool:
        """Add this prompt to those of one pass, of at most `most` tokens, if it need not wait for the next:
        it is wise to wait if one of the others reads a piece that it needs too.
        """
        pieces, missing = self._pieces, len(self.known)
        for other in others:
            if other._pieces[-1] == pieces[-1]:
                other.jobs += self.jobs
                return True
            if len(self) and pieces[missing] in other._pieces[len(other.known) :]:
                return False
        if others and sum(map(len, others)) + len(self) > most:
            return False
        others.append(self)
        return True


@dataclass(eq=False)
class Scope:
    """Pieces of one key's prompts with the same weights, by their digests, and the sessions they are for."""

    sessions: set[str] = field(default_factory=set)
    pieces: dict[bytes, Piece] = field(default_factory=dict)


class Prefixes:
    """The pieces that are kept. A job has an `owner`, a `session`, an `adapter`, a `prompt`, and the digests
    of its `pieces`.

    Args:
        model: whose prompts they are; stands for the adapter where there is none.
    """

    def __init__(self, model: Any):
        self._model, self._clock = model, itertools.count(1)
        self._scopes: WeakKeyDictionary[Any, dict[str, Scope]] = WeakKeyDictionary()  # by weights, by owner

    def _scope(self, job: Any) -> Scope:
        scope = self._scopes.setdefault(job.adapter or self._model, {}).setdefault(job.owner, Scope())
        scope.sessions.add(job.session)
        return scope

    def look_up(self, job: Any) -> Reading:
        """The job's prompt with what is known of it: all of it, if such a prompt was read before."""
        pieces, known, now = self._scope(job).pieces, [], next(self._clock)
        for i, digest in enumerate(job.pieces):
            piece = pieces.get(digest)
            if piece is None or (piece.end is None and i == len(job.pieces) - 1):
                break
            piece.used = now, -i
            known.append(piece)
        return Reading([job], known, known[-1].end if len(known) == len(job.pieces) else None)

    def keep(self, reading: Reading, shelf: Shelf, slot: int) -> None:
        """Copy the pieces that were read of a prompt, as many as there is ever room for, off a slot of a
        shelf.
        """
        job, now = reading.jobs[0], next(self._clock)
        pieces, length = self._scope(job).pieces, len(job.prompt)
        read = range(len(reading.known), min(len(job.pieces), POSITIONS // PIECE))
        self._make_room(len(read) * PIECE)
        for i in read:
            places = slice(i * PIECE, min((i + 1) * PIECE, length))
            end = reading.end if places.stop == length else None
            pieces[job.pieces[i]] = Piece(*shelf.copy(slot, places), end, (now, -i))

    def _all(self) -> Iterator[tuple[Scope, bytes, Piece]]:
        for scopes in list(self._scopes.values()):
            for scope in scopes.values():
                for digest, piece in scope.pieces.items():
                    yield scope, digest, piece

    @property
    def positions(self) -> int:
        """Positions that are kept."""
        return sum(piece.room for *_, piece in self._all())

    def _make_room(self, more: int) -> None:
        """Drop what was not used for longest, until there is room for `more` positions."""
        beyond = self.positions + more - POSITIONS
        if beyond <= 0:
            return
        for scope, digest, piece in sorted(self._all(), key=lambda kept: kept[2].used):
            if beyond <= 0:
                break
            del scope.pieces[digest]
            beyond -= piece.room

    def forget(self, session: str) -> None:
        """Drop what is kept for a session and no other."""
        for scopes in list(self._scopes.values()):
            for owner, scope in list(scopes.items()):
                scope.sessions.discard(session)
                if not scope.sessions:
                    del scopes[owner]
