"""Prefill: prompts go through the model into rows of the cache, what several of them begin with only once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import NamedTuple

from unimodal.generation.context import Piece
from unimodal.generation.reading import read
from unimodal.generation.requests import Request
from unimodal.model.cache import KVCache, LayerCache
from unimodal.model.model import UnifiedModel

PREFILL_AT_ONCE = 16384
"""Prompt tokens, padding included, that go through the model together."""


class NewAnswer(NamedTuple):
    """A request that joins the batch: its number, its prompt laid out, and how much of it its group begins with."""

    number: int
    request: Request
    piece: Piece
    shared: int = 0
    group: int = -1


class Prefill:
    """Reads into one cache."""

    def __init__(self, model: UnifiedModel, cache: KVCache, pad: int) -> None:
        self.model, self.cache, self.pad = model, cache, pad
        self.prefixes: dict[int, list[LayerCache]] = {}
        """Group -> what its prompts begin with."""

    def add(self, new: Sequence[NewAnswer], first: int, keep: Set[int]) -> None:
        """Prompts without their last token into rows `first`, `first + 1`, ...

        An image's media that end a prompt are read whole, and their last token once more when decoding starts, which
        changes nothing. `keep` names the groups whose prefix later answers will need.
        """
        rows = {item.number: first + index for index, item in enumerate(new)}
        unknown: dict[int, NewAnswer] = {}
        for item in new:
            if item.shared and item.group not in self.prefixes:
                unknown.setdefault(item.group, item)
        for group, item in unknown.items():
            self.pieces(rows[item.number], [item.piece.part(0, item.shared)])
            self.prefixes[group] = self.cache.export_row(rows[item.number], item.shared)
        for item in new:
            if item.shared:
                self.cache.load_row(rows[item.number], self.prefixes[item.group])
        rest = [item.piece.part(item.shared, len(item.piece) - (not item.piece.ends_in_media)) for item in new]
        self.pieces(first, rest)
        self.prefixes = {group: prefix for group, prefix in self.prefixes.items() if group in keep}

    def scattered(self, pieces: Mapping[int, Piece]) -> None:
        """Pieces into rows that need not follow one another."""
        rows = sorted(pieces)
        if not rows:
            return
        if rows == list(range(rows[0], rows[0] + len(rows))):
            self.pieces(rows[0], [pieces[row] for row in rows])
            return
        gathered = self.cache.gather(rows, self.cache.slots)
        read(self.model, gathered, [pieces[row] for row in rows], self.pad)
        self.cache.scatter(rows, gathered)

    def pieces(self, first: int, pieces: Sequence[Piece]) -> None:
        """Pieces into rows `first`, `first + 1`, ..., each into the slots that it names."""
        max_length = max(map(len, pieces), default=0)
        if max_length == 0:
            return
        at_once = max(1, PREFILL_AT_ONCE // max_length)
        for start in range(0, len(pieces), at_once):
            part = pieces[start : start + at_once]
            if any(map(len, part)):
                read(self.model, self.cache.view(first + start, first + start + len(part)), part, self.pad)
