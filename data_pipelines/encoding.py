"""Encoding: pictures are read ahead by threads and become codes in batches; documents become token documents."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_pipelines.documents import DamagedSample, Document, ImageSegment, TextSegment
from data_pipelines.images import Augmentation, ImagePolicy, augment, stackable, to_tensor
from data_pipelines.media_makers import IMAGES_AT_ONCE, MediaMaker
from data_pipelines.pictures import notes_of
from data_pipelines.shards.format import TokenDocument, TokenSegment
from tokenizers_vq.image_tokenizer import ImageTokenizer
from tokenizers_vq.text import TextTokenizer
from tokenizers_vq.token_space import TokenSpace

LOSSY = "texts that lose letters which the text tokenizer cannot write"

DocumentCopy = tuple[Document, int]
"""A document, and which of its copies: 0 is the document as it is, the others have augmented pictures."""


class Picture(NamedTuple):
    """`pixels` (3, H, W) in [-1, 1] for the image tokenizer, and by name what media are made of."""

    pixels: Tensor
    media: dict[str, Any]


class ReadDocument(NamedTuple):
    """A document's pictures and the ids of its texts, each in order, and what a user should know in numbers."""

    pictures: list[Picture]
    texts: list[np.ndarray]
    notes: tuple[str, ...] = ()


class Encoded(NamedTuple):
    """A picture's ids between boi and eoi, and its media (R, K, C) by name."""

    body: np.ndarray
    media: dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """The tokenizers, and how pictures are prepared for them."""

    text: TextTokenizer
    image: ImageTokenizer
    space: TokenSpace
    policy: ImagePolicy
    augmentations: tuple[Augmentation, ...]
    seed: int
    media: Sequence[MediaMaker] = field(default=())
    images_at_once: int = IMAGES_AT_ONCE

    def read(self, item: DocumentCopy) -> ReadDocument | DamagedSample:
        """The document's pictures and texts; what is wrong with them is returned, not raised."""
        document, copy = item
        together = document.task == "edit"  # an answer is right for the shown picture as it was augmented
        pictures, texts, notes = [], [], []
        try:
            for index, segment in enumerate(document.segments):
                if isinstance(segment, TextSegment):
                    texts.append(spelled(segment, self.text))
                    notes += [LOSSY] if self.text.loses(segment.text, texts[-1].tolist()) else []
                else:
                    picture = segment.open()
                    notes += notes_of(picture)
                    pictures.append(self._picture(document.key, copy, 0 if together else index, segment.role, picture))
        except DamagedSample as error:
            return error
        return ReadDocument(pictures, texts, () if copy else tuple(notes))

    def encode(self, batch: Sequence[DocumentCopy], read: Sequence[ReadDocument]) -> list[TokenDocument]:
        """Documents as they were read -> token documents."""
        pictures = [picture for of_document in read for picture in of_document.pictures]
        bodies = image_bodies([picture.pixels for picture in pictures], self.image, self.space, self.images_at_once)
        media: list[dict[str, np.ndarray]] = [{} for _ in pictures]
        for maker in self.media:
            name = maker.spec.name
            made = maker.make([picture.media[name] for picture in pictures], self.images_at_once)
            for target, values in zip(media, made, strict=True):
                target[name] = values
        images = map(Encoded, bodies, media)
        texts = [iter(of_document.texts) for of_document in read]
        return [self._document(*item, images, ids) for item, ids in zip(batch, texts, strict=True)]

    def _picture(self, key: str, copy: int, index: int, role: str, picture: Image.Image) -> Picture:
        def varied(picture: Image.Image) -> Image.Image:
            if not copy:
                return picture
            return augment(picture, self.augmentations, Random(f"{self.seed}-{key}-{copy}-{index}"))

        if any(maker.reads_original for maker in self.media):
            picture = varied(picture)  # once, before it is sized in two ways, so that all see the same variant
            pixels = to_tensor(self.policy.apply(picture, role))
        else:
            pixels = to_tensor(varied(self.policy.apply(picture, role)))
        return Picture(pixels, {maker.spec.name: maker.read(picture, pixels) for maker in self.media})

    def _document(
        self, document: Document, copy: int, images: Iterator[Encoded], texts: Iterator[np.ndarray]
    ) -> TokenDocument:
        segments = tuple(self._segment(segment, images, texts) for segment in document.segments)
        meta = {**document.meta, "copy": copy}
        return TokenDocument(key=copy_key(document.key, copy), segments=segments, meta=meta)

    def _segment(
        self, segment: TextSegment | ImageSegment, images: Iterator[Encoded], texts: Iterator[np.ndarray]
    ) -> TokenSegment:
        if isinstance(segment, TextSegment):
            return TokenSegment(kind="text", role=segment.role, ids=next(texts))
        body, media = next(images)
        return TokenSegment(kind="image", role=segment.role, ids=body, media=media)


def spelled(segment: TextSegment, text: TextTokenizer) -> np.ndarray:
    """The ids of a text. Raises DamagedSample for one that the tokenizer cannot write at all, or only as specials."""
    try:
        ids = text.encode(segment.text)
    except ValueError as error:
        raise DamagedSample(f"its {segment.role} holds a special token's name, which is not spelt out") from error
    if not ids:
        raise DamagedSample(f"its {segment.role} has no ids: the text tokenizer writes none of its letters")
    return np.asarray(ids, dtype=np.int64)


def image_bodies(
    pictures: Sequence[Tensor], image: ImageTokenizer, space: TokenSpace, at_once: int = IMAGES_AT_ONCE
) -> list[np.ndarray]:
    """Pictures (3, H, W) in [-1, 1], of several sizes -> for each the ids between boi and eoi."""
    bodies: dict[int, np.ndarray] = {}
    for group in stackable(pictures, at_once):
        pixels = torch.stack([pictures[index] for index in group])
        size = image.size_of(*pixels.shape[2:])
        ids = space.to_image_ids(image.encode(pixels).cpu()).tolist()
        bodies |= {index: np.array(space.image_body(row, size)) for index, row in zip(group, ids, strict=True)}
    return [bodies[index] for index in range(len(pictures))]


@dataclass(frozen=True, kw_only=True)
class EncodingBatch:
    """Documents that are encoded together; they never come from two shards, so that a shard is made alone."""

    shard: int
    items: Sequence[DocumentCopy]
    last: bool
    """Whether the shard ends with it."""


def batches(shard: int, items: Sequence[DocumentCopy], images: int) -> Iterator[EncodingBatch]:
    """A shard's documents, cut where a batch has so many images."""
    start = count = 0
    for end, (document, _) in enumerate(items, start=1):
        count += sum(isinstance(segment, ImageSegment) for segment in document.segments)
        if count >= images or end == len(items):
            yield EncodingBatch(shard=shard, items=items[start:end], last=end == len(items))
            start, count = end, 0


ReadBatch = tuple[EncodingBatch, list[ReadDocument | DamagedSample]]


def read_ahead(work: Iterable[EncodingBatch], encoder: Encoder, workers: int) -> Iterator[ReadBatch]:
    """Each batch with its pictures, while threads already read those of the next."""
    waiting: deque[tuple[EncodingBatch, list[Future[ReadDocument | DamagedSample]]]] = deque()
    with ThreadPoolExecutor(max(workers, 1)) as threads:
        for batch in work:
            waiting.append((batch, [threads.submit(encoder.read, item) for item in batch.items]))
            if len(waiting) > 1:
                yield _ready(*waiting.popleft())
        while waiting:
            yield _ready(*waiting.popleft())


def copy_key(key: str, copy: int) -> str:
    """The key of a document's copy."""
    return f"{key}+{copy}" if copy else key


def _ready(batch: EncodingBatch, futures: Iterable[Future[ReadDocument | DamagedSample]]) -> ReadBatch:
    return batch, [future.result() for future in futures]
