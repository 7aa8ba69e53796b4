"""Contexts: what a model has read, as runs of ids and of clean media, and where their tokens stand in its cache.

The ids of a text take one position and one cache slot each. The media of an image stand at one position, and each of
their tokens has a slot of its own and attends to all of them, as in training (data_pipelines/outline.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from data_pipelines.images import cut_patches
from data_pipelines.outline import PlacedMedia, Run, RunMedia, media_run
from tokenizers_vq.folded_patches import fold_patches
from tokenizers_vq.media import LATENTS, PATCHES, PatchSpec
from tokenizers_vq.token_space import TokenSpace
from unimodal.generation.guidance import GuidanceConfig
from unimodal.generation.requests import Request

# Shapes: L tokens of a piece.


class Reading(NamedTuple):
    """How a model reads the images of its context: as clean latents, and as patches where it has a ViT, else codes."""

    latents: bool = False
    patches: PatchSpec | None = None


@dataclass(frozen=True)
class Piece:
    """Tokens that are read together: their ids and positions, and the last cache slot that each attends to.

    They stand in the slots from `slot` on; `media` are placed by their index in the piece.
    """

    tokens: list[int]
    positions: list[int]
    limits: list[int]
    slot: int = 0
    media: tuple[PlacedMedia, ...] = ()
    following: int | None = None
    """The id that comes next, where it is known."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def ends_in_media(self) -> bool:
        """Whether the last token belongs to an image's media, which have to be read as a whole."""
        if not self.media:
            return False
        start, media = self.media[-1]
        return start + media.values.shape[0] * media.values.shape[1] == len(self) - 1

    def part(self, start: int, stop: int) -> Piece:
        """Tokens `start` to `stop`; neither may lie among the media of an image."""
        inside = tuple(
            placed._replace(start=placed.start - start) for placed in self.media if start <= placed.start < stop
        )
        parts = (self.tokens[start:stop], self.positions[start:stop], self.limits[start:stop])
        following = self.tokens[stop] if stop < len(self) else self.following
        return Piece(*parts, self.slot + start, inside, following)

    def whole_images(self, length: int) -> int:
        """The largest length up to `length` that cuts no image's media."""
        for start, media in self.media:
            first, end = start - 1, start + media.values.shape[0] * media.values.shape[1] + 1
            if first < length < end:
                return first
        return length

    def keys(self) -> list[int]:
        """A number for each token, by which equal beginnings are found: ids, or below 0 a hash of the image."""
        keys = list(self.tokens)
        for start, media in self.media:
            digest = hashlib.sha256(media.name.encode() + np.ascontiguousarray(media.values).tobytes()).digest()
            count = media.values.shape[0] * media.values.shape[1]
            keys[start : start + count] = [-1 - int.from_bytes(digest[:8], "big")] * count
        return keys


@dataclass(kw_only=True)
class Context:
    """Runs in order, as templates make them for training."""

    runs: list[Run] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(len(run.ids) for run in self.runs)

    @property
    def position(self) -> int:
        """The position of what comes next."""
        return sum(run.advance for run in self.runs)

    def say(self, ids: Sequence[int]) -> None:
        """Add token ids."""
        if len(ids):
            self.runs.append(Run(np.asarray(ids, dtype=np.int64), 0.0))

    def show(self, image: ContextImage, space: TokenSpace) -> None:
        """Add an image."""
        self.runs += image.runs(space)

    def piece(self) -> Piece:
        """All of it."""
        return lay_out(self.runs)


class ContextImage(NamedTuple):
    """An image of a context: clean media, then the ids between boi and eoi where the model reads codes."""

    media: tuple[RunMedia, ...]
    body: Sequence[int] | None

    def runs(self, space: TokenSpace) -> list[Run]:
        """As they stand in a context."""
        runs = [media_run(media, space, 0.0) for media in self.media]
        if self.body is not None:
            runs.append(Run(np.asarray([space.specials.boi, *self.body, space.specials.eoi]), 0.0))
        return runs


def lay_out(runs: Iterable[Run], slot: int = 0, position: int = 0) -> Piece:
    """Runs from a cache slot and a position on."""
    piece = Piece([], [], [], slot, ())
    placed: list[PlacedMedia] = []
    for run in runs:
        count, first = len(run.ids), slot + len(piece)
        if run.media:
            placed.append(PlacedMedia(len(piece) + 1, run.media))
            piece.positions.extend([position] * count)
            piece.limits.extend([first + count - 1] * count)
        else:
            piece.positions.extend(range(position, position + count))
            piece.limits.extend(range(first, first + count))
        piece.tokens.extend(run.ids.tolist())
        position += run.advance
    return replace(piece, media=tuple(placed))


def context_image(
    body: Sequence[int], latents: np.ndarray | None, pixels: np.ndarray | None, patches: PatchSpec | None
) -> ContextImage:
    """An image (codes `body`, latents (R, K, C) where they stand, pixels uint8 (H, W, 3)) as a model reads it."""
    media = [RunMedia(LATENTS, latents, "clean")] if latents is not None else []
    if patches is None or pixels is None:
        return ContextImage(tuple(media), body)
    cut = cut_patches(pixels, patches.size)
    values = fold_patches(cut, patches.tokens) if patches.tokens else cut
    return ContextImage((*media, RunMedia(PATCHES, values, "clean")), None)


def read_prompt(request: Request, space: TokenSpace, reading: Reading) -> Context:
    """The context of a request's prompt.

    Before an answer in text there are no clean latents, as questions have none in training. Raises ValueError where the
    request does not come with the latents or pixels of the images of its prompt.
    """
    context = Context()
    latents = reading.latents and request.config.mode != "text"
    if not (latents or reading.patches):
        context.say(request.prompt)
        return context
    text: list[int] = []
    index = found = 0
    while index < len(request.prompt):
        span = space.read_image(request.prompt, index) if request.prompt[index] == space.specials.boi else None
        if span is None:
            text.append(request.prompt[index])
            index += 1
            continue
        context.say(text)
        body = request.prompt[index + 1 : span.end - 1]
        known = request.latents[found].cpu().numpy() if latents and found < len(request.latents) else None
        pixels = request.pixels[found] if reading.patches and found < len(request.pixels) else None
        context.show(context_image(body, known, pixels, reading.patches), space)
        text, index, found = [], span.end, found + 1
    context.say(text)
    given = {"latents": request.latents if latents else None, "pixels": request.pixels if reading.patches else None}
    for name, values in given.items():
        if values is not None and len(values) != found:
            raise ValueError(f"a prompt has {found} images and comes with {name} of {len(values)}: they go together")
    return context


def without_words(context: Context, space: TokenSpace, *, images: bool) -> Context:
    """What guidance compares with: `<bos> <null> images <sep>`, or without its images too."""
    specials = space.specials
    kept: list[Run] = []
    for run in context.runs if images else ():
        kept += [run] if run.media else _image_runs(run, space)
    bos, null, sep = ([Run(np.array([token]), 0.0)] for token in (specials.bos, specials.null, specials.sep))
    return Context(runs=[*bos, *null, *kept, *sep])


def _image_runs(run: Run, space: TokenSpace) -> list[Run]:
    """The images among ids, as runs of their own."""
    ids, index, found = run.ids.tolist(), 0, []
    while index < len(ids):
        span = space.read_image(ids, index) if ids[index] == space.specials.boi else None
        if span is not None:
            found.append(Run(run.ids[index : span.end], 0.0))
        index = span.end if span else index + 1
    return found


def guidance_contexts(context: Context, space: TokenSpace, config: GuidanceConfig) -> list[Context]:
    """What a guided row is compared with: the null context, and in the three-way form the images' context too."""
    if not config.active:
        return []
    null = without_words(context, space, images=False)
    if config.image_scale is None:
        return [null]
    images = without_words(context, space, images=True)
    return [null] if len(images) == len(null) else [null, images]
