"""Templates: a tokenized document becomes a training sequence, ids with a loss weight for each.

    caption         <bos> <boi> image <eoi>                  | <sep> caption <eos>
    question        <bos> <boi> image <eoi>                  | question <sep> answer <eos>
    text to image   <bos> caption <sep> <boi> image <eoi> <eos>
    unconditional   <bos> <null>  <sep> <boi> image <eoi> <eos>
    dialogue        <bos> request <sep> answer <eos> request <sep> answer <eos> ...
    interleaved     <bos> text <boi> image <eoi> text <boi> image <eoi> ... <eos>

An image is all that its layout puts between boi and eoi: codes, and in a grid their size and the ends of rows. What
stands right of `|` is a branch: all questions about a picture share it, and none sees another. Interleaved documents,
and those of text alone, are learnt whole in their own order, with pictures weighing as drawn ones do.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import NamedTuple

import numpy as np

from data_pipelines.shards.format import TokenDocument, TokenSegment
from tokenizers_vq.token_space import TokenSpace

# Shapes: T tokens of one sequence.


@dataclass(frozen=True, kw_only=True)
class TemplateConfig:
    """How documents are told.

    `image_first` of the samples show the picture and ask about it, the others draw it from its caption;
    `drop_prompt` of the drawings replace the caption by <null>, which guidance needs. The weights scale the loss of
    pictures that are only shown, and of prompts; answers and drawn pictures weigh 1.
    """

    image_first: float = 0.5
    drop_prompt: float = 0.1
    shown_image_weight: float = 0.1
    drawn_image_weight: float = 1.0
    prompt_weight: float = 0.0
    max_branches: int = 8

    def __post_init__(self) -> None:
        if not (0 <= self.image_first <= 1 and 0 <= self.drop_prompt <= 1):
            raise ValueError(f"shares lie between 0 and 1, got {self}")
        if self.max_branches < 1:
            raise ValueError(f"a picture needs at least one branch, got {self.max_branches}")


@dataclass(frozen=True)
class Rendered:
    """One document as training sees it; all arrays have length T.

    `weights[i]` is the loss weight of predicting `ids[i]`; branch 0 is the trunk.
    """

    ids: np.ndarray
    weights: np.ndarray
    branches: np.ndarray
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def render(document: TokenDocument, space: TokenSpace, config: TemplateConfig, random: Random) -> Rendered:
    """The sequence of a document; `random` decides order, prompt dropping and which questions are asked."""
    return outline(document, space, config, random).build()


def outline(document: TokenDocument, space: TokenSpace, config: TemplateConfig, random: Random) -> Outline:
    """As `render`, but no id is read yet."""
    layout = document.meta.get("layout", "sample")
    if layout == "dialogue":
        return _dialogue(document.segments, space, config)
    images = [segment for segment in document.segments if segment.kind == "image"]
    if layout == "interleaved" or not images:
        return _in_order(document.segments, space, config)
    if random.random() < config.image_first:
        return _image_first(images, document.segments, space, config, random)
    return _text_first(images[0], document.segments, space, config, random)


class Run(NamedTuple):
    """Ids that all weigh the same."""

    ids: np.ndarray
    weight: float


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
        return Rendered(ids, weights, branches, positions)

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


def _length(runs: Iterable[Run]) -> int:
    return sum([len(ids) for ids, _ in runs])


def _pieces(block: tuple[Run, ...], room: int) -> list[tuple[Run, ...]]:
    """A block of text alone (one run, or a run and <eos>) that is longer than `room`, in pieces; others as they are."""
    first, *end = block
    if len(end) > 1 or _length(block) <= room:
        return [block]
    ids, weight = first
    pieces: list[tuple[Run, ...]] = [(Run(ids[at : at + room], weight),) for at in range(0, len(ids), room)]
    if _length(pieces[-1]) + _length(end) <= room:
        pieces[-1] = (*pieces[-1], *end)
    else:
        pieces.append(tuple(end))
    return pieces


@lru_cache(maxsize=1000)
def _one(token: int, weight: float) -> Run:
    return Run(np.array([token]), weight)


def _runs(segment: TokenSegment, space: TokenSpace, weight: float) -> tuple[Run, ...]:
    """A segment; an image stands between boi and eoi."""
    if segment.kind == "text":
        return (Run(segment.ids, weight),)
    return (_one(space.specials.boi, weight), Run(segment.ids, weight), _one(space.specials.eoi, weight))


def _image_first(
    images: Sequence[TokenSegment],
    segments: Sequence[TokenSegment],
    space: TokenSpace,
    config: TemplateConfig,
    random: Random,
) -> Outline:
    specials = space.specials
    trunk = [_one(specials.bos, 0)]
    for image in images:
        trunk += _runs(image, space, config.shown_image_weight)
    branches = [[segment] for segment in segments if segment.role == "caption"] + _pairs(segments)
    if len(branches) > config.max_branches:
        branches = random.sample(branches, config.max_branches)
    blocks = []
    for *prompt, answer in branches:
        asked = [run for segment in prompt for run in _runs(segment, space, config.prompt_weight)]
        blocks.append((*asked, _one(specials.sep, 0), *_runs(answer, space, 1.0), _one(specials.eos, 1.0)))
    return Outline(tuple(trunk), tuple(blocks), branched=True)


def _pairs(segments: Sequence[TokenSegment]) -> list[list[TokenSegment]]:
    """(question, answer) of a sample, in order."""
    neighbours = itertools.pairwise(segments)
    return [[a, b] for a, b in neighbours if a.role == "question" and b.role == "answer"]


def _text_first(
    image: TokenSegment,
    segments: Sequence[TokenSegment],
    space: TokenSpace,
    config: TemplateConfig,
    random: Random,
) -> Outline:
    specials = space.specials
    captions = [segment for segment in segments if segment.role == "caption"]
    if captions and random.random() >= config.drop_prompt:
        prompt = _runs(random.choice(captions), space, config.prompt_weight)
    else:
        prompt = (_one(specials.null, 0),)
    drawn = _runs(image, space, config.drawn_image_weight)
    block = (*prompt, _one(specials.sep, 0), *drawn, _one(specials.eos, 1.0))
    return Outline((_one(specials.bos, 0),), (block,))


def _dialogue(segments: Sequence[TokenSegment], space: TokenSpace, config: TemplateConfig) -> Outline:
    """Blocks are exchanges: what is said until the answer to it ends."""
    specials = space.specials
    exchanges: list[list[Run]] = [[]]
    answering = False
    for segment in segments:
        is_answer = segment.role == "answer"
        if is_answer and not answering:
            exchanges[-1].append(_one(specials.sep, 0))
        if answering and not is_answer:
            exchanges[-1].append(_one(specials.eos, 1.0))
            exchanges.append([])
        answering = is_answer
        exchanges[-1] += _runs(segment, space, _turn_weight(segment, config))
    exchanges[-1].append(_one(specials.eos, 1.0))
    return Outline((_one(specials.bos, 0),), tuple(map(tuple, exchanges)))


def _turn_weight(segment: TokenSegment, config: TemplateConfig) -> float:
    if segment.role == "answer":
        return config.drawn_image_weight if segment.kind == "image" else 1.0
    return config.shown_image_weight if segment.kind == "image" else config.prompt_weight


def _in_order(segments: Sequence[TokenSegment], space: TokenSpace, config: TemplateConfig) -> Outline:
    weights = {"text": 1.0, "image": config.drawn_image_weight}
    *blocks, last = [_runs(segment, space, weights[segment.kind]) for segment in segments]
    specials = space.specials
    return Outline((_one(specials.bos, 0),), (*blocks, (*last, _one(specials.eos, 1.0))))
