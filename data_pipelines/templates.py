"""Templates: a tokenized document becomes a training sequence, ids with a loss weight for each.

    caption         <bos> <boi> codes <eoi>                  | <sep> caption <eos>
    question        <bos> <boi> codes <eoi>                  | question <sep> answer <eos>
    text to image   <bos> caption <sep> <boi> codes <eoi> <eos>
    unconditional   <bos> <null>  <sep> <boi> codes <eoi> <eos>
    dialogue        <bos> request <sep> answer <eos> request <sep> answer <eos> ...

What stands right of `|` is a branch: all questions about a picture share it, and none sees another.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random

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


class SequenceBuilder:
    """Collects ids, weights and branches."""

    def __init__(self, space: TokenSpace) -> None:
        self.space = space
        self._ids: list[int] = []
        self._weights: list[float] = []
        self._branches: list[int] = []
        self._branch = 0

    def add(self, ids: Iterable[int], weight: float) -> SequenceBuilder:
        """Append ids that all weigh the same."""
        ids = list(ids)
        self._ids += ids
        self._weights += [weight] * len(ids)
        self._branches += [self._branch] * len(ids)
        return self

    def segment(self, segment: TokenSegment, weight: float) -> SequenceBuilder:
        """Append a segment; an image is put between boi and eoi."""
        if segment.kind == "text":
            return self.add(segment.ids, weight)
        specials = self.space.specials
        return self.add([specials.boi], weight).add(segment.ids, weight).add([specials.eoi], weight)

    def branch(self) -> SequenceBuilder:
        """What follows continues the trunk and sees no earlier branch."""
        self._branch += 1
        return self

    def build(self) -> Rendered:
        """The finished sequence; positions of a branch go on where the trunk ends."""
        branches = np.asarray(self._branches, dtype=np.int32)
        index = np.arange(len(branches))
        starts = np.concatenate([[0], np.flatnonzero(np.diff(branches)) + 1]) if len(branches) else index
        trunk = int((branches == 0).sum())
        start_of = np.repeat(starts, np.diff(np.append(starts, len(branches))))
        positions = np.where(branches == 0, index, index - start_of + trunk)
        weights = np.asarray(self._weights, dtype=np.float32)
        return Rendered(np.asarray(self._ids, dtype=np.int64), weights, branches, positions)


def render(document: TokenDocument, space: TokenSpace, config: TemplateConfig, random: Random) -> Rendered:
    """The sequence of a document; `random` decides order, prompt dropping and which questions are asked."""
    if document.meta.get("layout", "sample") == "dialogue":
        return _dialogue(document.segments, space, config)
    images = [segment for segment in document.segments if segment.kind == "image"]
    if not images:
        return _plain_text(document.segments, space)
    if random.random() < config.image_first:
        return _image_first(images, document.segments, space, config, random)
    return _text_first(images[0], document.segments, space, config, random)


def _image_first(
    images: Sequence[TokenSegment],
    segments: Sequence[TokenSegment],
    space: TokenSpace,
    config: TemplateConfig,
    random: Random,
) -> Rendered:
    specials = space.specials
    builder = SequenceBuilder(space).add([specials.bos], 0)
    for image in images:
        builder.segment(image, config.shown_image_weight)
    captions = [[segment] for segment in segments if segment.role == "caption"]
    branches = captions + _pairs(segments)
    for prompt in branches if len(branches) <= config.max_branches else random.sample(branches, config.max_branches):
        builder.branch()
        for segment in prompt[:-1]:
            builder.segment(segment, config.prompt_weight)
        builder.add([specials.sep], 0).segment(prompt[-1], 1.0).add([specials.eos], 1.0)
    return builder.build()


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
) -> Rendered:
    specials = space.specials
    captions = [segment for segment in segments if segment.role == "caption"]
    builder = SequenceBuilder(space).add([specials.bos], 0)
    if captions and random.random() >= config.drop_prompt:
        builder.segment(random.choice(captions), config.prompt_weight)
    else:
        builder.add([specials.null], 0)
    builder.add([specials.sep], 0)
    return builder.segment(image, config.drawn_image_weight).add([specials.eos], 1.0).build()


def _dialogue(segments: Sequence[TokenSegment], space: TokenSpace, config: TemplateConfig) -> Rendered:
    specials = space.specials
    builder = SequenceBuilder(space).add([specials.bos], 0)
    answering = False
    for segment in segments:
        is_answer = segment.role == "answer"
        if is_answer and not answering:
            builder.add([specials.sep], 0)
        if answering and not is_answer:
            builder.add([specials.eos], 1.0)
        answering = is_answer
        builder.segment(segment, _turn_weight(segment, config))
    return builder.add([specials.eos], 1.0).build()


def _turn_weight(segment: TokenSegment, config: TemplateConfig) -> float:
    if segment.role == "answer":
        return config.drawn_image_weight if segment.kind == "image" else 1.0
    return config.shown_image_weight if segment.kind == "image" else config.prompt_weight


def _plain_text(segments: Sequence[TokenSegment], space: TokenSpace) -> Rendered:
    builder = SequenceBuilder(space).add([space.specials.bos], 0)
    for segment in segments:
        builder.segment(segment, 1.0)
    return builder.add([space.specials.eos], 1.0).build()
