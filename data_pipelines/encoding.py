"""Encoding: pictures are read ahead by threads and become codes in batches; documents become token documents."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_pipelines.documents import DamagedSample, Document, ImageSegment, TextSegment
from data_pipelines.images import Augmentation, ImagePolicy, PatchPolicy, augment, stackable, to_tensor
from data_pipelines.shards.format import TokenDocument, TokenSegment
from tokenizers_vq.image_tokenizer import ImageTokenizer
from tokenizers_vq.latents import LatentAutoencoder
from tokenizers_vq.text import TextTokenizer
from tokenizers_vq.token_space import TokenSpace

IMAGES_AT_ONCE = 256
Copy = tuple[Document, int]
"""A document, and which of its copies: 0 is the document as it is, the others have augmented pictures."""


class Picture(NamedTuple):
    """`pixels` (3, H, W) in [-1, 1] for the tokenizers, and with a policy `seen` uint8 (H, W, 3) for a ViT."""

    pixels: Tensor
    seen: np.ndarray | None = None


class Encoded(NamedTuple):
    """A picture's ids between boi and eoi, its latents (R, K, C) where there is an autoencoder, and what a ViT sees."""

    body: np.ndarray
    latents: np.ndarray | None
    seen: np.ndarray | None


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """The tokenizers, and how pictures are prepared for them."""

    text: TextTokenizer
    image: ImageTokenizer
    space: TokenSpace
    policy: ImagePolicy
    augmentations: tuple[Augmentation, ...]
    seed: int
    autoencoder: LatentAutoencoder | None = None
    patches: PatchPolicy | None = None

    def read(self, item: Copy) -> list[Picture] | DamagedSample:
        """The document's pictures; what is wrong with them is returned, not raised."""
        document, copy = item
        alike = document.meta.get("task") == "edit"  # an answer is right for the shown picture as it was augmented
        try:
            return [
                self._picture(document.key, copy, 0 if alike else index, segment)
                for index, segment in enumerate(document.segments)
                if isinstance(segment, ImageSegment)
            ]
        except DamagedSample as error:
            return error

    def encode(self, batch: Sequence[Copy], read: Sequence[list[Picture]]) -> list[TokenDocument]:
        """Documents with their pictures -> token documents."""
        given = [picture for of_document in read for picture in of_document]
        pictures = [picture.pixels for picture in given]
        bodies = image_bodies(pictures, self.image, self.space)
        latents = image_latents(pictures, self.autoencoder) if self.autoencoder else [None] * len(pictures)
        images = map(Encoded, bodies, latents, [picture.seen for picture in given])
        return [self._document(document, copy, images) for document, copy in batch]

    def _picture(self, key: str, copy: int, index: int, segment: ImageSegment) -> Picture:
        def varied(picture: Image.Image) -> Image.Image:
            if not copy:
                return picture
            return augment(picture, self.augmentations, Random(f"{self.seed}-{key}-{copy}-{index}"))

        picture = segment.open()
        if self.patches is None:
            return Picture(to_tensor(varied(self.policy.apply(picture, segment.role))))
        picture = varied(picture)  # once, before it is sized in two ways, so that a ViT sees what the others see
        return Picture(to_tensor(self.policy.apply(picture, segment.role)), self.patches.apply(picture))

    def _document(self, document: Document, copy: int, images: Iterator[Encoded]) -> TokenDocument:
        segments = tuple(self._segment(segment, images) for segment in document.segments)
        meta = {**document.meta, "copy": copy}
        return TokenDocument(key=copy_key(document.key, copy), segments=segments, meta=meta)

    def _segment(self, segment: TextSegment | ImageSegment, images: Iterator[Encoded]) -> TokenSegment:
        if isinstance(segment, TextSegment):
            ids = torch.tensor(self.text.encode(segment.text), dtype=torch.int64)
            return TokenSegment(kind="text", role=segment.role, ids=ids.numpy())
        body, latents, seen = next(images)
        return TokenSegment(kind="image", role=segment.role, ids=body, latents=latents, pixels=seen)


def image_bodies(pictures: Sequence[Tensor], image: ImageTokenizer, space: TokenSpace) -> list[np.ndarray]:
    """Pictures (3, H, W) in [-1, 1], of several sizes -> for each the ids between boi and eoi."""
    bodies: dict[int, np.ndarray] = {}
    for group in stackable(pictures, IMAGES_AT_ONCE):
        pixels = torch.stack([pictures[index] for index in group])
        size = (pixels.shape[2] // image.reduction, pixels.shape[3] // image.reduction)
        ids = space.to_image_ids(image.encode(pixels).cpu()).tolist()
        bodies |= {index: np.array(space.image_body(row, size)) for index, row in zip(group, ids, strict=True)}
    return [bodies[index] for index in range(len(pictures))]


def image_latents(pictures: Sequence[Tensor], autoencoder: LatentAutoencoder) -> list[np.ndarray]:
    """Pictures (3, H, W) in [-1, 1], of several sizes -> latents (R, K, C) of each, float16."""
    latents: dict[int, np.ndarray] = {}
    device = autoencoder.latent_mean.device
    for group in stackable(pictures, IMAGES_AT_ONCE):
        pixels = torch.stack([pictures[index] for index in group]).to(device)
        found = autoencoder.encode(pixels).permute(0, 2, 3, 1).half().cpu().numpy()
        latents |= dict(zip(group, found, strict=True))
    return [latents[index] for index in range(len(pictures))]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Documents that are encoded together; they never come from two shards, so that a shard is made alone."""

    shard: int
    items: Sequence[Copy]
    last: bool
    """Whether the shard ends with it."""


def batches(shard: int, items: Sequence[Copy]) -> Iterator[Batch]:
    """A shard's documents, cut where a batch has `IMAGES_AT_ONCE` pictures."""
    start = images = 0
    for end, (document, _) in enumerate(items, start=1):
        images += sum(isinstance(segment, ImageSegment) for segment in document.segments)
        if images >= IMAGES_AT_ONCE or end == len(items):
            yield Batch(shard=shard, items=items[start:end], last=end == len(items))
            start, images = end, 0


Read = tuple[Batch, list[list[Picture] | DamagedSample]]


def read_ahead(work: Iterable[Batch], encoder: Encoder, workers: int) -> Iterator[Read]:
    """Each batch with its pictures, while threads already read those of the next."""
    waiting: deque[tuple[Batch, list[Future[list[Picture] | DamagedSample]]]] = deque()
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


def _ready(batch: Batch, futures: Iterable[Future[list[Picture] | DamagedSample]]) -> Read:
    return batch, [future.result() for future in futures]
