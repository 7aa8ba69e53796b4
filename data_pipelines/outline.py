"""Outlines: a training sequence as runs of ids, whose length is known before any id is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from tokenizers_vq.token_space import TokenSpace

# Shapes: T tokens of one sequence; R rows, K columns and C channels of an image's media.


class RunMedia(NamedTuple):
    """The media of one image: their name (`MediaSpec.name`), values (R, K, C), and whether noise is to be added."""

    name: str
    values: np.ndarray
    state: Literal["clean", "noised"]


class PlacedMedia(NamedTuple):
    """Media of a sequence, and the index of their first token in it."""

    start: int
    media: RunMedia


@dataclass(frozen=True)
class Rendered:
    """One document as training sees it; all arrays have length T.

    `weights[i]` is the loss weight of predicting `ids[i]`; branch 0 is the trunk. `spans` is 0 for plain tokens, and k
    for those of `media[k - 1]`, its boi and eoi among them, or -k where these are noised.
    """

    ids: np.ndarray
    weights: np.ndarray
    branches: np.ndarray
    positions: np.ndarray
    spans: np.ndarray | None = None
    media: tuple[PlacedMedia, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)


class Run(NamedTuple):
    """Ids that all weigh the same.

    The media of an image are boi, a filler for each of them, and eoi. They stand at one position, which noised media
    leave to the clean ones that follow.
    """

    ids: np.ndarray
    weight: float
    media: RunMedia | None = None

    @property
    def is_noised(self) -> bool:
        """Whether its tokens are noised: they are drawn, and predict nothing that follows."""
        return bool(self.media) and self.media.state == "noised"

    @property
    def advance(self) -> int:
        """Positions that are taken."""
        return int(not self.is_noised) if self.media else len(self.ids)

    @property
    def total_weight(self) -> float:
        """The sum of its tokens' loss weights; of media only boi has one."""
        return self.weight * (1 if self.media else len(self.ids))


@lru_cache(maxsize=1000)
def single(token: int, weight: float) -> Run:
    """The run of one special token."""
    return Run(np.array([token]), weight)


def media_run(media: RunMedia, space: TokenSpace, weight: float) -> Run:
    """The run of an image's media; `weight` is that of boi."""
    rows, columns = media.values.shape[:2]
    ids = np.full(rows * columns + 2, space.specials.pad)
    ids[0], ids[-1] = space.specials.boi, space.specials.eoi
    return Run(ids, weight, media)


@dataclass(frozen=True)
class Outline:
    """A sequence whose length is known before its ids are read: a prefix, and blocks that may be separated.

    Where a document is longer than a row, each part has the prefix and some of the blocks. `branched` says that the
    prefix is a trunk and every block a branch of it; otherwise each block continues the one before.
    """

    prefix: tuple[Run, ...]
    blocks: tuple[tuple[Run, ...], ...]
    branched: bool = False

    def __len__(self) -> int:
        return sum(map(_length, (self.prefix, *self.blocks)))

    def build(self) -> Rendered:
        """Read the ids; positions of a branch continue where the trunk ends."""
        parts = (self.prefix, *self.blocks)
        runs = [run for part in parts for run in part]
        lengths = [_length(part) for part in parts]
        total = sum(lengths)
        positions, branches = np.arange(total), np.zeros(total, dtype=np.int32)
        if self.branched:
            branches = np.repeat(np.arange(len(parts), dtype=np.int32), lengths)
            starts = np.cumsum([0, *lengths[:-1]])
            starts[1:] -= lengths[0]
            positions -= np.repeat(starts, lengths)
        ids = np.concatenate([run.ids for run in runs]).astype(np.int64)
        weights = np.repeat(np.asarray([run.weight for run in runs], dtype=np.float32), [len(run.ids) for run in runs])
        plain = Rendered(ids, weights, branches, positions)
        return self._with_media(plain, runs) if any(run.media for run in runs) else plain

    def _with_media(self, plain: Rendered, runs: Sequence[Run]) -> Rendered:
        """The media of an image are a span whose tokens share a position; later tokens do not count the others."""
        spans, steps = np.zeros(len(plain), dtype=np.int64), np.ones(len(plain), dtype=np.int64)
        placed: list[PlacedMedia] = []
        start = 0
        for run in runs:
            end = start + len(run.ids)
            if run.media:
                values = np.asarray(run.media.values)
                placed.append(PlacedMedia(start + 1, run.media._replace(values=values)))
                spans[start:end] = -len(placed) if run.is_noised else len(placed)
                steps[start:end] = 0
                steps[end - 1] = run.advance
            start = end
        before = np.cumsum(steps) - steps
        if self.branched:
            firsts = np.cumsum([0, *(_length(part) for part in (self.prefix, *self.blocks))])[:-1]
            trunk_end = before[firsts[1]] if len(firsts) > 1 else 0
            starts = before[firsts[plain.branches]]
            before = np.where(plain.branches == 0, before, before - starts + trunk_end)
        weights = np.where((spans != 0) & (np.roll(spans, 1) == spans), 0, plain.weights).astype(np.float32)
        return replace(plain, weights=weights, positions=before, spans=spans, media=tuple(placed))

    @property
    def weight(self) -> float:
        """The sum of the loss weights of its tokens that another one of their branch comes before."""
        total = sum(run.total_weight for part in (self.prefix, *self.blocks) for run in part)
        firsts = self.blocks if self.branched else ()
        return total - sum(block[0].weight for block in firsts)

    @property
    def num_noised(self) -> int:
        """Tokens of noised media, boi and eoi not among them."""
        runs = (run for part in (self.prefix, *self.blocks) for run in part)
        return sum(len(run.ids) - 2 for run in runs if run.is_noised)

    def cut(self, capacity: int) -> list[Outline]:
        """Parts of at most `capacity` ids, each with the prefix and as many of the blocks as fit; none where one block
        does not fit at all. A block of text alone may be cut anywhere, an image never."""
        budget = capacity - _length(self.prefix)
        if budget > 0:
            blocks = [piece for block in self.blocks for piece in _pieces(block, budget)]
        else:
            blocks = list(self.blocks)
        if budget < max(map(_length, blocks), default=0):
            return []
        groups: list[list[tuple[Run, ...]]] = [[]]
        free = budget
        for block in blocks:
            if _length(block) > free:
                groups.append([])
                free = budget
            groups[-1].append(block)
            free -= _length(block)
        return [Outline(self.prefix, tuple(group), self.branched) for group in groups]


def _length(runs: Iterable[Run]) -> int:
    return sum([len(run.ids) for run in runs])


def _pieces(block: tuple[Run, ...], budget: int) -> list[tuple[Run, ...]]:
    """A block of text alone (one run, or a run and <eos>) of more than `budget` ids, in pieces; others as they are."""
    first, *end = block
    if len(end) > 1 or _length(block) <= budget or first.media:
        return [block]
    ids, weight = first.ids, first.weight
    pieces: list[tuple[Run, ...]] = [(Run(ids[at : at + budget], weight),) for at in range(0, len(ids), budget)]
    if _length(pieces[-1]) + _length(end) <= budget:
        pieces[-1] = (*pieces[-1], *end)
    else:
        pieces.append(tuple(end))
    return pieces
