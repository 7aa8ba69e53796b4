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

An image is all that its layout puts between boi and eoi: codes, and in a grid their size and the ends of rows; how else
it may stand here is the business of data_pipelines/forms. What stands right of `|` is a branch: all questions about a
picture share it, and none sees another. Interleaved documents, and those of text alone, are learnt whole in their own
order, with pictures weighing as drawn ones do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from data_pipelines.forms.form import PictureForm, ShownForm
from data_pipelines.forms.latents import LatentTemplateConfig
from data_pipelines.forms.registry import DRAWN, SEEN, DrawnAs, SeenAs, picture_form
from data_pipelines.outline import Outline, Rendered, Run, single
from data_pipelines.shards.format import TokenDocument, TokenSegment
from tokenizers_vq.token_space import TokenSpace


@dataclass(frozen=True, kw_only=True)
class TemplateConfig:
    """How documents are formatted.

    `image_first` of the samples show the picture and ask about it, the others draw it from its caption;
    `drop_prompt` of the drawings replace the caption by <null>, which guidance needs. `drop_image` of the edits lose
    picture and request, `drop_prompt` of the others the request alone: what three-way guidance compares with. The
    weights scale the loss of pictures that are only shown, and of prompts; answers and drawn pictures weigh 1.

    Pictures are `seen` as codes or as patches of a ViT, and `drawn` as codes or as latents of the flow branch, which
    `latents` configures. `patch_size` refuses patches of another size in pixels; None takes those there are. With
    `resampled_tokens`, a square number, a picture that is seen as patches takes that many tokens whatever its shape:
    those of a resampler.
    """

    image_first: float = 0.5
    drop_prompt: float = 0.1
    drop_image: float = 0.1
    shown_image_weight: float = 0.1
    drawn_image_weight: float = 1.0
    prompt_weight: float = 0.0
    max_branches: int = 8
    seen: SeenAs = "codes"
    drawn: DrawnAs = "codes"
    latents: LatentTemplateConfig = field(default_factory=LatentTemplateConfig)
    patch_size: int | None = None
    resampled_tokens: int = 0

    def __post_init__(self) -> None:
        if not all(0 <= share <= 1 for share in (self.image_first, self.drop_prompt, self.drop_image)):
            raise ValueError(f"shares lie between 0 and 1, got {self}")
        if self.max_branches < 1:
            raise ValueError(f"a picture needs at least one branch, got {self.max_branches}")
        if self.seen not in SEEN or self.drawn not in DRAWN:
            raise ValueError(f"pictures are seen as {' or '.join(SEEN)} and drawn as {' or '.join(DRAWN)}, got {self}")
        if self.resampled_tokens < 0 or math.isqrt(self.resampled_tokens) ** 2 != self.resampled_tokens:
            raise ValueError(f"resampled_tokens is a square number, or 0 for one a patch, got {self.resampled_tokens}")
        if self.resampled_tokens and self.seen != "patches":
            raise ValueError("resampled_tokens is for pictures that are seen as patches: set seen: patches")
        if self.patch_size is not None and self.patch_size < 1:
            raise ValueError(f"a patch has at least one pixel, got {self.patch_size}")

    @property
    def media(self) -> tuple[str, ...]:
        """The media that documents need beside their ids (`MediaSpec.name`)."""
        return tuple(name for name in (self.drawn, self.seen) if name != "codes")


def render(document: TokenDocument, space: TokenSpace, config: TemplateConfig, random: Random) -> Rendered:
    """The sequence of a document; `random` decides order, prompt dropping and which questions are asked."""
    return outline(document, space, config, random).build()


def outline(document: TokenDocument, space: TokenSpace, config: TemplateConfig, random: Random) -> Outline:
    """As `render`, but no id is read yet."""
    form = picture_form(space, config.seen, config.drawn, config.latents, config.resampled_tokens)
    return Formatter(space, config, form).outline(document, random)


@dataclass(frozen=True)
class Formatter:
    """Documents as outlines, with pictures in one form."""

    space: TokenSpace
    config: TemplateConfig
    form: PictureForm

    def outline(self, document: TokenDocument, random: Random) -> Outline:
        """The outline of a document by its task and layout."""
        segments = document.segments
        if document.task == "edit":
            return self._edit(segments, random)
        if document.layout == "dialogue":
            return self._dialogue(segments)
        images = [segment for segment in segments if segment.kind == "image"]
        if document.layout == "interleaved" or not images:
            return self._in_order(segments)
        if random.random() < self.config.image_first:
            return self._image_first(images, segments, random)
        return self._text_first(images[0], segments, random)

    def _image_first(self, images: Sequence[TokenSegment], segments: Sequence[TokenSegment], random: Random) -> Outline:
        specials = self.space.specials
        trunk = [single(specials.bos, 0)]
        whole = self.form.whole(random)
        for image in images:
            trunk += self.form.shown(image, self.config.shown_image_weight, followed=whole)
        branches = [[segment] for segment in segments if segment.role == "caption"] + _pairs(segments)
        if len(branches) > self.config.max_branches:
            branches = random.sample(branches, self.config.max_branches)
        blocks = []
        for *prompt, answer in branches:
            asked = [Run(segment.ids, self.config.prompt_weight) for segment in prompt]
            learnt = self._answer(answer, 1.0, followed=False)
            blocks.append((*asked, single(specials.sep, 0), *learnt, *self._end(learnt)))
        return Outline(tuple(trunk), tuple(blocks), branched=True)

    def _text_first(self, image: TokenSegment, segments: Sequence[TokenSegment], random: Random) -> Outline:
        specials = self.space.specials
        captions = [segment for segment in segments if segment.role == "caption"]
        if captions and random.random() >= self.config.drop_prompt:
            prompt = Run(random.choice(captions).ids, self.config.prompt_weight)
        else:
            prompt = single(specials.null, 0)
        drawn = self.form.drawn(image, self.config.drawn_image_weight, followed=self.form.whole(random))
        block = (prompt, single(specials.sep, 0), *drawn, *self._end(drawn))
        return Outline((single(specials.bos, 0),), (block,))

    def _dialogue(self, segments: Sequence[TokenSegment]) -> Outline:
        """Blocks are exchanges: what is asked until the answer to it ends."""
        specials = self.space.specials
        exchanges: list[list[Run]] = [[]]
        answering = False
        for number, segment in enumerate(segments, start=1):
            is_answer = segment.role == "answer"
            if is_answer and not answering:
                exchanges[-1].append(single(specials.sep, 0))
            if answering and not is_answer:
                exchanges[-1].append(single(specials.eos, 1.0))
                exchanges.append([])
            answering = is_answer
            exchanges[-1] += self._turn(segment, self.form, followed=number < len(segments))
        exchanges[-1] += self._end(exchanges[-1])
        return Outline((single(specials.bos, 0),), tuple(map(tuple, exchanges)))

    def _edit(self, segments: Sequence[TokenSegment], random: Random) -> Outline:
        """One exchange: as a dialogue, or without its request, or without its picture too."""
        specials = self.space.specials
        answers = [segment for segment in segments if segment.role == "answer"]
        prompt = [segment for segment in segments if segment.role != "answer"]
        null: tuple[Run, ...] = ()
        if random.random() < self.config.drop_image:
            prompt, null = [], (single(specials.null, 0),)
        elif random.random() < self.config.drop_prompt:
            prompt, null = [segment for segment in prompt if segment.kind == "image"], (single(specials.null, 0),)
        source = self.form.source(random)
        asked = [run for segment in prompt for run in self._turn(segment, source, followed=True)]
        whole = self.form.whole(random)
        drawn: list[Run] = []
        for number, segment in enumerate(answers, start=1):
            drawn += self._turn(segment, self.form, followed=number < len(answers) or whole)
        block = (*null, *asked, single(specials.sep, 0), *drawn, *self._end(drawn))
        return Outline((single(specials.bos, 0),), (block,))

    def _in_order(self, segments: Sequence[TokenSegment]) -> Outline:
        weights = {"text": 1.0, "image": self.config.drawn_image_weight}
        *blocks, last = [
            self._answer(segment, weights[segment.kind], followed=number < len(segments))
            for number, segment in enumerate(segments, start=1)
        ]
        return Outline((single(self.space.specials.bos, 0),), (*blocks, (*last, *self._end(last))))

    def _turn(self, segment: TokenSegment, form: ShownForm, *, followed: bool) -> tuple[Run, ...]:
        """A segment of a dialogue; what is no answer is always followed, by its answer."""
        if segment.role == "answer":
            weight = self.config.drawn_image_weight if segment.kind == "image" else 1.0
            return self._answer(segment, weight, followed=followed)
        if segment.kind == "text":
            return (Run(segment.ids, self.config.prompt_weight),)
        return form.shown(segment, self.config.shown_image_weight, followed=True)

    def _answer(self, segment: TokenSegment, weight: float, *, followed: bool) -> tuple[Run, ...]:
        """Text or a picture that is learnt."""
        if segment.kind == "text":
            return (Run(segment.ids, weight),)
        return self.form.drawn(segment, weight, followed=followed)

    def _end(self, runs: Sequence[Run]) -> tuple[Run, ...]:
        """<eos>, except after noised media, which cannot predict it."""
        return () if runs[-1].is_noised else (single(self.space.specials.eos, 1.0),)


def _pairs(segments: Sequence[TokenSegment]) -> list[list[TokenSegment]]:
    """(question, answer) of a sample, in order."""
    neighbours = itertools.pairwise(segments)
    return [[a, b] for a, b in neighbours if a.role == "question" and b.role == "answer"]
