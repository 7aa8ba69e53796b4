"""Prompts: strings and pictures -> ids, and the ids of an answer -> strings and pictures."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_pipelines.images import ImagePolicy, resize_to_patches, to_image, to_tensor
from data_pipelines.pictures import to_rgb
from tokenizers_vq.image_tokenizer import ImageTokenizer
from tokenizers_vq.latents import LatentAutoencoder
from tokenizers_vq.layout import nearest_size
from tokenizers_vq.media import PatchSpec
from tokenizers_vq.text import TextTokenizer
from tokenizers_vq.token_space import ImageSpan, TokenSpace
from unimodal.generation.requests import Finish

Part = str | Image.Image
Turn = Part | list[Part]
"""A part of what the user says; a list inside a prompt is an earlier answer of the model."""
Prompt = str | Sequence[Turn]


class Answer(list[Part]):
    """Strings and pictures in order; `finish` says why the answer ended, `log_probs` how likely each id was."""

    def __init__(
        self,
        parts: Iterable[Part] = (),
        *,
        finish: Finish = "end",
        ids: Sequence[int] = (),
        log_probs: Sequence[float] = (),
    ) -> None:
        super().__init__(parts)
        self.finish, self.ids, self.log_probs = finish, list(ids), list(log_probs)


class PromptCoder:
    """Turns prompts of one call into ids; a picture that occurs many times is encoded once."""

    def __init__(
        self,
        space: TokenSpace,
        text: TextTokenizer,
        image: ImageTokenizer | None,
        autoencoder: LatentAutoencoder | None = None,
    ) -> None:
        self.space, self.text, self.image, self.autoencoder = space, text, image, autoencoder

    def encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """`<bos> user turn <sep>`, with earlier answers as `answer <eos>` in between."""
        parts = [[prompt] if isinstance(prompt, str) else listed(prompt) for prompt in prompts]
        codes = self._codes(parts)
        return [self._ids(prompt, codes) for prompt in parts]

    def outline(self, prompt: Prompt) -> list[int]:
        """As `encode` of one prompt, as long but without its pixels: every picture has the codes 0."""
        blank: dict[int, list[int]] = {}
        for image in pictures_of(prompt):
            size = nearest_size(self.space.layout, image.height, image.width)
            blank[id(image)] = self.space.image_body([self.space.image_offset] * math.prod(size), size)
        return self._ids([prompt] if isinstance(prompt, str) else listed(prompt), blank)

    def latents(self, prompts: Sequence[Prompt]) -> list[list[Tensor]]:
        """Of each prompt's pictures, in order, the latents (R, K, C); none without an autoencoder."""
        parts = [[prompt] if isinstance(prompt, str) else listed(prompt) for prompt in prompts]
        images = {id(part): part for part in _parts(parts) if isinstance(part, Image.Image)}
        if self.autoencoder is None or not images:
            return [[] for _ in prompts]
        found: dict[int, Tensor] = {}
        for group in _groups(list(images.items()), 256):
            pixels = torch.stack([self.preprocess(image) for _, image in group])
            latents = self.autoencoder.encode(pixels).permute(0, 2, 3, 1)
            found.update(zip((key for key, _ in group), latents, strict=True))
        return [[found[id(part)] for part in _parts([prompt]) if id(part) in found] for prompt in parts]

    def pixels(self, prompts: Sequence[Prompt], spec: PatchSpec | None) -> list[list[np.ndarray]]:
        """Of each prompt's pictures, in order, uint8 (H, W, 3) as a ViT sees them; none without patches."""
        if spec is None:
            return [[] for _ in prompts]
        parts = [[prompt] if isinstance(prompt, str) else listed(prompt) for prompt in prompts]
        images = {id(part): part for part in _parts(parts) if isinstance(part, Image.Image)}
        found = {key: resize_to_patches(to_rgb(image), spec) for key, image in images.items()}
        return [[found[id(part)] for part in _parts([prompt]) if id(part) in found] for prompt in parts]

    def preprocess(self, image: Image.Image) -> Tensor:
        """A shown picture -> (3, H, W) in [-1, 1], by border padding to the size of the layout nearest in shape."""
        policy = ImagePolicy.of(self.codec, self.space.layout)
        return to_tensor(policy.apply(to_rgb(image), "image"))

    def decode(self, answers: Sequence[Sequence[int]], drawn: Sequence[Sequence[Tensor]] = ()) -> list[list[Part]]:
        """Ids of answers -> text and pictures in order. Pieces of a malformed image are dropped.

        drawn: the pictures (3, H, W) of each answer where the flow branch has drawn them.
        """
        spans = [split(answer, self.space) for answer in answers]
        given = [list(pictures) for pictures in drawn] or [[] for _ in answers]
        of_codes = [
            [span for span in answer if isinstance(span, ImageSpan)] if not decoded_images else []
            for answer, decoded_images in zip(spans, given, strict=True)
        ]
        decoded = iter(self.pictures([span for answer in of_codes for span in answer]))
        parts: list[list[Part]] = []
        for answer, decoded_images in zip(spans, given, strict=True):
            pictures = map(to_image, decoded_images) if decoded_images else decoded
            parts.append([next(pictures) if isinstance(s, ImageSpan) else self.text.decode(s) for s in answer])
        return parts

    def pictures(self, spans: Sequence[ImageSpan]) -> list[Image.Image]:
        """The pictures of image spans; spans of one size are decoded together."""
        pictures: dict[int, Image.Image] = {}
        for size in dict.fromkeys(span.size for span in spans):
            same_size = [index for index, span in enumerate(spans) if span.size == size]
            for group in _groups(same_size, 128):
                codes = self.space.to_codes(torch.tensor([spans[index].ids for index in group]))
                decoded = self.codec.decode(codes, size)
                pictures.update(zip(group, map(to_image, decoded), strict=True))
        return [pictures[index] for index in range(len(spans))]

    @property
    def codec(self) -> ImageTokenizer:
        """The image tokenizer. Raises ValueError where the model has none."""
        if self.image is None:
            raise ValueError("this model has no image tokenizer: give it text only")
        return self.image

    def _codes(self, prompts: Sequence[Sequence[Any]]) -> dict[int, list[int]]:
        images = {id(part): part for part in _parts(prompts) if isinstance(part, Image.Image)}
        if not images:
            return {}
        bodies: dict[int, list[int]] = {}
        for group in _groups(list(images.items()), 256):
            pixels = {key: self.preprocess(image) for key, image in group}
            for shape in dict.fromkeys(tensor.shape for tensor in pixels.values()):
                same_size = {key: tensor for key, tensor in pixels.items() if tensor.shape == shape}
                codes = self.codec.encode(torch.stack(list(same_size.values())))
                bodies.update(zip(same_size, self._bodies(codes, shape), strict=True))
        return bodies

    def _bodies(self, codes: Tensor, shape: Sequence[int]) -> list[list[int]]:
        size = nearest_size(self.space.layout, shape[-2], shape[-1])
        return [self.space.image_body(ids, size) for ids in self.space.to_image_ids(codes).tolist()]

    def _ids(self, prompt: Sequence[Any], codes: dict[int, list[int]]) -> list[int]:
        specials = self.space.specials
        ids = [specials.bos]
        for turn in prompt:
            if isinstance(turn, list):
                ids.append(specials.sep)
                for part in turn:
                    ids += self._part(part, codes)
                ids.append(specials.eos)
            else:
                ids += self._part(turn, codes)
        return [*ids, specials.sep]

    def _part(self, part: Any, codes: dict[int, list[int]]) -> list[int]:
        if isinstance(part, str):
            if not part.isascii() and part.encode("utf-8", "replace").decode() != part:
                raise ValueError(f"a prompt holds what is no text in UTF-8: {part[:60]!r}")
            return self.text.encode(part)
        if isinstance(part, Image.Image):
            return [self.space.specials.boi, *codes[id(part)], self.space.specials.eoi]
        raise ValueError(f"a prompt is made of strings and pictures, got {type(part).__name__}")


def _parts(prompts: Sequence[Sequence[Any]]) -> Iterator[Any]:
    """The parts of all turns, in order."""
    for turn in itertools.chain(*prompts):
        yield from turn if isinstance(turn, list) else [turn]


def pictures_of(prompt: Prompt) -> list[Image.Image]:
    """The pictures of a prompt, in order."""
    parts = [prompt] if isinstance(prompt, str) else listed(prompt)
    return [part for part in _parts([parts]) if isinstance(part, Image.Image)]


def listed(prompt: Any) -> list[Any]:
    """The parts of a prompt that is no string. Raises ValueError where it is no list."""
    if not isinstance(prompt, list | tuple):
        kind = type(prompt).__name__
        raise ValueError(f"a prompt is a string, or a list of strings and pictures, got {kind}: write [prompt]")
    return list(prompt)


def split(ids: Sequence[int], space: TokenSpace) -> list[list[int] | ImageSpan]:
    """Text runs and whole image spans, in order."""
    specials = space.specials
    spans: list[list[int] | ImageSpan] = []
    text: list[int] = []
    index = 0
    while index < len(ids):
        image = space.read_image(ids, index) if ids[index] == specials.boi else None
        if image is not None:
            spans += [text, image] if text else [image]
            text, index = [], image.end
            continue
        if ids[index] < space.text_size and ids[index] not in (*space.ends, specials.boi, specials.eoi):
            text.append(ids[index])
        index += 1
    return [*spans, text] if text else spans


def _groups(items: list[Any], size: int) -> list[list[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
