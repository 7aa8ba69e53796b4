"""Templates: a tokenized document becomes a training sequence, ids with a loss weight for each.

    caption         <bos> <boi> image <eoi>                  | <sep> caption <eos>
    question        <bos> <boi> image <eoi>                  | question <sep> answer <eos>
    text to image   <bos> caption <sep> <boi> image <eoi> <eos>
    unconditional   <bos> <null>  <sep> <boi> image <eoi> <eos>
    dialogue        <bos> request <sep> answer <eos> request <sep> answer <eos> ...
    edit            <bos> <boi> image <eoi> request <sep> <boi> image <eoi> <eos>
      of the image  <bos> <null> <boi> image <eoi> <sep> <boi> image <eoi> <eos>
      of neither    <bos> <null>  <sep> <boi> image <eoi> <eos>
    interleaved     <bos> text <boi> image <eoi> text <boi> image <eoi> ... <eos>

An image is all that its layout puts between boi and eoi: codes, and in a grid their size and the ends of rows. What
stands right of `|` is a branch: all questions about a picture share it, and none sees another. Interleaved documents,
and those of text alone, are learnt whole in their own order, with pictures weighing as drawn ones do.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random

import numpy as np

from data_pipelines.outline import Outline, Rendered, Run, copy_in_latents, copy_in_patches
from data_pipelines.shards.format import TokenDocument, TokenSegment
from tokenizers_vq.token_space import TokenSpace

# Shapes: T tokens of one sequence.


@dataclass(frozen=True, kw_only=True)
class LatentTemplateConfig:
    """How pictures are told to the flow branch (docs/flow.md).

    A drawn picture is a noised copy in latents; a clean copy and its codes come next where anything follows. A shown
    picture is a clean copy and its codes, but for questions and captions the codes alone. So that a model learns to go
    on in either case, `whole` of the drawings are seen again and ended, `whole` of the questions have the clean copy.
    `drop_clean` and `drop_codes` of the edits lose one of the two, so that neither is leant on alone.

    With `vit_patch`, the side in pixels of the patches of a ViT, pictures are seen through it wherever codes are said
    here, and codes are not read at all.
    """

    drop_clean: float = 0.1
    drop_codes: float = 0.3
    whole: float = 0.1
    vit_patch: int | None = None

    def __post_init__(self) -> None:
        if not all(0 <= share <= 1 for share in (self.drop_clean, self.drop_codes, self.whole)):
            raise ValueError(f"shares lie between 0 and 1, got {self}")
        if self.vit_patch is not None and self.vit_patch < 1:
            raise ValueError(f"a patch has at least one pixel, got {self.vit_patch}")


@dataclass(frozen=True, kw_only=True)
class TemplateConfig:
    """How documents are told.

    `image_first` of the samples show the picture and ask about it, the others draw it from its caption;
    `drop_prompt` of the drawings replace the caption by <null>, which guidance needs. `drop_image` of the edits lose
    picture and request, `drop_prompt` of the others the request alone: what three-way guidance compares with. The
    weights scale the loss of pictures that are only shown, and of prompts; answers and drawn pictures weigh 1.
    With `latents` pictures are told to the flow branch.
    """

    image_first: float = 0.5
    drop_prompt: float = 0.1
    drop_image: float = 0.1
    shown_image_weight: float = 0.1
    drawn_image_weight: float = 1.0
    prompt_weight: float = 0.0
    max_branches: int = 8
    latents: LatentTemplateConfig | None = None

    def __post_init__(self) -> None:
        if not all(0 <= share <= 1 for share in (self.image_first, self.drop_prompt, self.drop_image)):
            raise ValueError(f"shares lie between 0 and 1, got {self}")
        if self.max_branches < 1:
            raise ValueError(f"a picture needs at least one branch, got {self.max_branches}")

    @property
    def vit_patch(self) -> int | None:
        """Side of the patches through which pictures are seen; None where they are seen by their codes."""
        return None if self.latents is None else self.latents.vit_patch


def render(document: TokenDocument, space: TokenSpace, config: TemplateConfig, random: Random) -> Rendered:
    """The sequence of a document; `random` decides order, prompt dropping and which questions are asked."""
    return outline(document, space, config, random).build()


def outline(document: TokenDocument, space: TokenSpace, config: TemplateConfig, random: Random) -> Outline:
    """As `render`, but no id is read yet."""
    layout = document.meta.get("layout", "sample")
    if document.meta.get("task") == "edit":
        return _edit(document.segments, space, config, random)
    if layout == "dialogue":
        return _dialogue(document.segments, space, config)
    images = [segment for segment in document.segments if segment.kind == "image"]
    if layout == "interleaved" or not images:
        return _in_order(document.segments, space, config)
    if random.random() < config.image_first:
        return _image_first(images, document.segments, space, config, random)
    return _text_first(images[0], document.segments, space, config, random)


@lru_cache(maxsize=1000)
def _one(token: int, weight: float) -> Run:
    return Run(np.array([token]), weight)


def _runs(segment: TokenSegment, space: TokenSpace, weight: float) -> tuple[Run, ...]:
    """A segment; an image stands between boi and eoi."""
    if segment.kind == "text":
        return (Run(segment.ids, weight),)
    return (_one(space.specials.boi, weight), Run(segment.ids, weight), _one(space.specials.eoi, weight))


def _copy(segment: TokenSegment, space: TokenSpace, weight: float, *, noised: bool) -> Run:
    """A picture in latents. Raises ValueError where the shards hold none."""
    if segment.latents is None:
        raise ValueError("the flow branch trains on latents, and these shards hold none: tokenize with --autoencoder")
    return copy_in_latents(segment.latents, space, weight, noised=noised)


def _seen(segment: TokenSegment, space: TokenSpace, config: LatentTemplateConfig, weight: float) -> tuple[Run, ...]:
    """A picture as it is understood: its codes, or its patches. Raises ValueError where the shards hold no pixels."""
    if config.vit_patch is None:
        return _runs(segment, space, weight)
    if segment.pixels is None:
        raise ValueError("a ViT sees pixels, and these shards hold none: tokenize with --patch")
    return (copy_in_patches(segment.pixels, config.vit_patch, space),)


def _tell(
    segment: TokenSegment, space: TokenSpace, config: TemplateConfig, weight: float, *, seen: bool
) -> tuple[Run, ...]:
    """A segment of role `answer` or another; with the flow branch, of a picture what is `seen` by what follows."""
    if segment.kind == "text" or config.latents is None:
        return _runs(segment, space, weight)
    drawn = segment.role == "answer"
    noised = (_copy(segment, space, weight, noised=True),) if drawn else ()
    clean = (_copy(segment, space, 0.0, noised=False),) if seen else ()
    understood = _seen(segment, space, config.latents, 0.0 if drawn else weight) if seen or not drawn else ()
    return (*noised, *clean, *understood)


def _end(last: TokenSegment, space: TokenSpace, config: TemplateConfig, *, seen: bool) -> tuple[Run, ...]:
    """<eos>, unless it would stand behind a noised copy, from which nothing can tell that it comes."""
    behind_noise = config.latents is not None and last.kind == "image" and last.role == "answer" and not seen
    return () if behind_noise else (_one(space.specials.eos, 1.0),)


def _whole(config: TemplateConfig, random: Random) -> bool:
    """Whether a document is told in the longer of two forms; no random number is drawn without the flow branch."""
    return config.latents is not None and random.random() < config.latents.whole


def _image_first(
    images: Sequence[TokenSegment],
    segments: Sequence[TokenSegment],
    space: TokenSpace,
    config: TemplateConfig,
    random: Random,
) -> Outline:
    specials = space.specials
    trunk = [_one(specials.bos, 0)]
    seen = _whole(config, random)
    for image in images:
        trunk += _tell(replace(image, role="image"), space, config, config.shown_image_weight, seen=seen)
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
    image, seen = replace(image, role="answer"), _whole(config, random)
    drawn = _tell(image, space, config, config.drawn_image_weight, seen=seen)
    block = (*prompt, _one(specials.sep, 0), *drawn, *_end(image, space, config, seen=seen))
    return Outline((_one(specials.bos, 0),), (block,))


def _dialogue(segments: Sequence[TokenSegment], space: TokenSpace, config: TemplateConfig) -> Outline:
    """Blocks are exchanges: what is said until the answer to it ends."""
    specials = space.specials
    exchanges: list[list[Run]] = [[]]
    answering = False
    for number, segment in enumerate(segments, start=1):
        is_answer = segment.role == "answer"
        if is_answer and not answering:
            exchanges[-1].append(_one(specials.sep, 0))
        if answering and not is_answer:
            exchanges[-1].append(_one(specials.eos, 1.0))
            exchanges.append([])
        answering = is_answer
        seen = not is_answer or number < len(segments)
        exchanges[-1] += _tell(segment, space, config, _turn_weight(segment, config), seen=seen)
    exchanges[-1] += _end(segments[-1], space, config, seen=False)
    return Outline((_one(specials.bos, 0),), tuple(map(tuple, exchanges)))


def _edit(segments: Sequence[TokenSegment], space: TokenSpace, config: TemplateConfig, random: Random) -> Outline:
    """One exchange: as a dialogue, or without its request, or without its picture too."""
    specials = space.specials
    answers = [segment for segment in segments if segment.role == "answer"]
    prompt = [segment for segment in segments if segment.role != "answer"]
    null: tuple[Run, ...] = ()
    if random.random() < config.drop_image:
        prompt, null = [], (_one(specials.null, 0),)
    elif random.random() < config.drop_prompt:
        prompt, null = [segment for segment in prompt if segment.kind == "image"], (_one(specials.null, 0),)
    asked = [run for s in prompt for run in _tell(s, space, config, _turn_weight(s, config), seen=True)]
    if config.latents is not None:
        asked = _lose_a_copy(asked, config.latents, random)
    seen = _whole(config, random)
    drawn: list[Run] = []
    for number, segment in enumerate(answers, start=1):
        follows = number < len(answers) or seen
        drawn += _tell(segment, space, config, _turn_weight(segment, config), seen=follows)
    block = (*null, *asked, _one(specials.sep, 0), *drawn, *_end(answers[-1], space, config, seen=seen))
    return Outline((_one(specials.bos, 0),), (block,))


def _lose_a_copy(runs: Sequence[Run], config: LatentTemplateConfig, random: Random) -> list[Run]:
    """Without the clean copies of shown pictures, or without what is understood, or as they are; never without both."""
    if random.random() < config.drop_clean:
        return [run for run in runs if run.latents is None]
    copies = [place for place, run in enumerate(runs) if run.latents is not None]
    if random.random() >= config.drop_codes:
        return list(runs)
    length = 3 if config.vit_patch is None else 1
    understood = {place + offset for place in copies for offset in range(1, length + 1)}
    return [run for place, run in enumerate(runs) if place not in understood]


def _turn_weight(segment: TokenSegment, config: TemplateConfig) -> float:
    if segment.role == "answer":
        return config.drawn_image_weight if segment.kind == "image" else 1.0
    return config.shown_image_weight if segment.kind == "image" else config.prompt_weight


def _in_order(segments: Sequence[TokenSegment], space: TokenSpace, config: TemplateConfig) -> Outline:
    weights = {"text": 1.0, "image": config.drawn_image_weight}
    learnt = [replace(segment, role="answer") for segment in segments]
    *blocks, last = [
        _tell(segment, space, config, weights[segment.kind], seen=number < len(learnt))
        for number, segment in enumerate(learnt, start=1)
    ]
    end = _end(learnt[-1], space, config, seen=False)
    return Outline((_one(space.specials.bos, 0),), (*blocks, (*last, *end)))
