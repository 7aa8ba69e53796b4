"""Prompts: strings and pictures -> ids, and the ids of an answer -> strings and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from data_pipelines.documents import to_rgb
from data_pipelines.images import ImagePolicy, to_image, to_tensor
from tokenizers_vq.text import TextTokenizer
from tokenizers_vq.token_space import TokenSpace

Part = str | Image.Image
Turn = Part | list[Part]
"""A part of what the user says; a list inside a prompt is an earlier answer of the model."""
Prompt = str | Sequence[Turn]
Answer = list[Part]


class ImageCodec(Protocol):
    """What prompts need of an image tokenizer."""

    @property
    def image_size(self) -> int: ...

    def encode(self, images: Tensor) -> Tensor: ...

    def decode(self, codes: Tensor) -> Tensor: ...


class PromptCoder:
    """Turns prompts of one call into ids; a picture that occurs many times is encoded once."""

    def __init__(self, space: TokenSpace, text: TextTokenizer, image: ImageCodec | None) -> None:
        self.space, self.text, self.image = space, text, image

    def encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """`<bos> user turn <sep>`, with earlier answers as `answer <eos>` in between."""
        parts = [[prompt] if isinstance(prompt, str) else list(prompt) for prompt in prompts]
        codes = self._codes(parts)
        return [self._ids(prompt, codes) for prompt in parts]

    def preprocess(self, image: Image.Image) -> Tensor:
        """A shown picture -> (3, S, S) in [-1, 1], by border padding."""
        policy = ImagePolicy(size=self._codec().image_size)
        return to_tensor(policy.apply(to_rgb(image), "image"))

    def decode(self, answers: Sequence[Sequence[int]]) -> list[Answer]:
        """Ids of answers -> text and pictures in order. Pieces of a malformed image are left out."""
        spans = [_split(answer, self.space) for answer in answers]
        images = [codes for answer in spans for kind, codes in answer if kind == "image"]
        pictures = iter(self._pictures(images))
        return [
            [next(pictures) if kind == "image" else self.text.decode(ids) for kind, ids in answer] for answer in spans
        ]

    def _codec(self) -> ImageCodec:
        if self.image is None:
            raise ValueError("this model has no image tokenizer: give it text only")
        return self.image

    def _codes(self, prompts: Sequence[Sequence[Any]]) -> dict[int, list[int]]:
        flat = (p for prompt in prompts for turn in prompt for p in (turn if isinstance(turn, list) else [turn]))
        images = {id(part): part for part in flat if isinstance(part, Image.Image)}
        if not images:
            return {}
        encoded: list[list[int]] = []
        for group in _groups(list(images.values()), 256):
            pixels = torch.stack([self.preprocess(image) for image in group])
            encoded += self.space.to_image_ids(self._codec().encode(pixels)).tolist()
        return dict(zip(images, encoded, strict=True))

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
            return self.text.encode(part)
        if isinstance(part, Image.Image):
            return [self.space.specials.boi, *codes[id(part)], self.space.specials.eoi]
        raise ValueError(f"a prompt is made of strings and pictures, got {type(part).__name__}")

    def _pictures(self, spans: Sequence[list[int]]) -> list[Image.Image]:
        pictures: list[Image.Image] = []
        for group in _groups(list(spans), 128):
            codes = self.space.to_codes(torch.tensor(group))
            pictures += [to_image(pixels) for pixels in self._codec().decode(codes)]
        return pictures


def _split(ids: Sequence[int], space: TokenSpace) -> list[tuple[str, list[int]]]:
    """Text runs and whole image spans, in order."""
    specials = space.specials
    spans: list[tuple[str, list[int]]] = []
    text: list[int] = []
    index = 0
    while index < len(ids):
        end = index + space.layout.span
        if ids[index] == specials.boi and end <= len(ids) and ids[end - 1] == specials.eoi:
            spans += [("text", text)] if text else []
            spans.append(("image", list(ids[index + 1 : end - 1])))
            text, index = [], end
            continue
        if ids[index] < space.image_offset and ids[index] not in (specials.eos, specials.boi, specials.eoi):
            text.append(ids[index])
        index += 1
    return spans + ([("text", text)] if text else [])


def _groups(items: list[Any], size: int) -> list[list[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
