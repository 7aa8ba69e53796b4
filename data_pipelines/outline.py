"""Outlines: a training sequence as runs of ids, whose length is known before any id is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from data_pipelines.images import cut_patches
from tokenizers_vq.token_space import TokenSpace

# Shapes: T tokens of one sequence; R rows, K columns and C channels of a picture's latents.


@dataclass(frozen=True)
class Rendered:
    """One document as training sees it; all arrays have length T.

    `weights[i]` is the loss weight of predicting `ids[i]`; branch 0 is the trunk. `spans` is 0 for plain tokens, k for
    those of the k-th copy of a picture, -k where it is one in latents that is noised. `copies` are those in latents:
    the place of each one's first latent, and (R, K, C); `patches` in the same way those that a ViT sees.
    """

    ids: np.ndarray
    weights: np.ndarray
    branches: np.ndarray
    positions: np.ndarray
    spans: np.ndarray | None = None
    copies: tuple[tuple[int, np.ndarray], ...] = ()
    patches: tuple[tuple[int, np.ndarray], ...] = ()

    def __len__(self) -> int:
        return len(self.ids)


class Run(NamedTuple):
    """Ids that all weigh the same.

    A copy of a picture in latents, or in patches for a ViT, is boi, a filler for each of them, and eoi; they stand at
    one position, which a noised copy leaves to the clean one that follows it.
    """

    ids: np.ndarray
    weight: float
    latents: np.ndarray | None = None
    noised: bool = False
    pixels: np.ndarray | None = None
    patch: int = 1

    @property
    def is_copy(self) -> bool:
        """Whether its tokens are a copy of a picture, not ids that mean something."""
        return self.latents is not None or self.pixels is not None

    @property
    def advance(self) -> int:
        """Positions that are taken."""
        return int(not self.noised) if self.is_copy else len(self.ids)


def copy_in_latents(latents: np.ndarray, space: TokenSpace, weight: float, *, noised: bool) -> Run:
    """The run of a picture's latents (R, K, C); `weight` is that of boi."""
    return Run(_fillers(latents.shape[0] * latents.shape[1], space), weight, latents, noised)


def copy_in_patches(pixels: np.ndarray, patch: int, space: TokenSpace) -> Run:
    """The run of a picture that a ViT sees, uint8 (H, W, 3), in patches of that side; it is never predicted."""
    count = (pixels.shape[0] // patch) * (pixels.shape[1] // patch)
    return Run(_fillers(count, space), 0.0, pixels=pixels, patch=patch)


def _fillers(count: int, space: TokenSpace) -> np.ndarray:
    ids = np.full(count + 2, space.specials.pad)
    ids[0], ids[-1] = space.specials.boi, space.specials.eoi
    return ids


@dataclass(frozen=True)
class Outline:
    """A sequence whose length is known before its ids are read: a prefix, and blocks that may be parted.

    Where a document is longer than a row, each part has the prefix and some of the blocks. `branched` says that the
    prefix is a trunk and every block a branch of it; otherwise each block continues the one before.
    """

    prefix: tuple[Run, ...]
    blocks: tuple[tuple[Run, ...], ...]
    branched: bool = False

    def __len__(self) -> int:
        return sum(map(_length, (self.prefix, *self.blocks)))

    def build(self) -> Rendered:
        """Read the ids; positions of a branch go on where the trunk ends."""
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
        if any(run.is_copy for run in runs):
            return self._with_copies(Rendered(ids, weights, branches, positions), runs)
        return Rendered(ids, weights, branches, positions)

    def _with_copies(self, plain: Rendered, runs: Sequence[Run]) -> Rendered:
        """Copies of pictures are spans, and their tokens share a position; no later token counts those they spare."""
        spans, steps = np.zeros(len(plain), dtype=np.int64), np.ones(len(plain), dtype=np.int64)
        copies: list[tuple[int, np.ndarray]] = []
        patches: list[tuple[int, np.ndarray]] = []
        start = 0
        for run in runs:
            end = start + len(run.ids)
            if run.is_copy:
                if run.latents is not None:
                    copies.append((start + 1, np.asarray(run.latents)))
                if run.pixels is not None:
                    patches.append((start + 1, cut_patches(np.asarray(run.pixels), run.patch)))
                number = len(copies) + len(patches)
                spans[start:end] = -number if run.noised else number
                steps[start:end] = 0
                steps[end - 1] = run.advance
            start = end
        before = np.cumsum(steps) - steps
        if self.branched:
            firsts = np.cumsum([0, *(_length(part) for part in (self.prefix, *self.blocks))])[:-1]
            trunk_end = before[firsts[1]] if len(firsts) > 1 else 0
            begins = before[firsts[plain.branches]]
            before = np.where(plain.branches == 0, before, before - begins + trunk_end)
        weights = np.where((spans != 0) & (np.roll(spans, 1) == spans), 0, plain.weights).astype(np.float32)
        return replace(
            plain, weights=weights, positions=before, spans=spans, copies=tuple(copies), patches=tuple(patches)
        )

    @property
    def weight(self) -> float:
        """The sum of the loss weights of its tokens that another one of their branch comes before."""
        total = sum(_weight(run) for part in (self.prefix, *self.blocks) for run in part)
        firsts = self.blocks if self.branched else ()
        return total - sum(block[0].weight for block in firsts)

    @property
    def noised_latents(self) -> int:
        """Latents that are to be drawn."""
        runs = (run for part in (self.prefix, *self.blocks) for run in part)
        return sum(len(run.ids) - 2 for run in runs if run.noised)

    def cut(self, capacity: int) -> list[Outline]:
        """Parts of at most `capacity` ids, each with the prefix and as many of the blocks as fit; none where one block
        does not fit at all. A block of text alone may be cut anywhere, an image never."""
        room = capacity - _length(self.prefix)
        blocks = [piece for block in self.blocks for piece in _pieces(block, room)] if room > 0 else list(self.blocks)
        if room < max(map(_length, blocks), default=0):
            return []
        groups: list[list[tuple[Run, ...]]] = [[]]
        free = room
        for block in blocks:
            if _length(block) > free:
                groups.append([])
                free = room
            groups[-1].append(block)
            free -= _length(block)
        return [Outline(self.prefix, tuple(group), self.branched) for group in groups]


def _weight(run: Run) -> float:
    return run.weight * (1 if run.is_copy else len(run.ids))


def _length(runs: Iterable[Run]) -> int:
    return sum([len(run.ids) for run in runs])


def _pieces(block: tuple[Run, ...], room: int) -> list[tuple[Run, ...]]:
    """A block of text alone (one run, or a run and <eos>) that is longer than `room`, in pieces; others as they are."""
    first, *end = block
    if len(end) > 1 or _length(block) <= room or first.is_copy:
        return [block]
    ids, weight = first.ids, first.weight
    pieces: list[tuple[Run, ...]] = [(Run(ids[at : at + room], weight),) for at in range(0, len(ids), room)]
    if _length(pieces[-1]) + _length(end) <= room:
        pieces[-1] = (*pieces[-1], *end)
    else:
        pieces.append(tuple(end))
    return pieces
