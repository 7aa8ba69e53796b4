"""Tokenize: documents of a source become token shards."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from data_pipelines.documents import DamagedSample, Document, ImageSegment, TextSegment
from data_pipelines.failures import FailureLog
from data_pipelines.images import Augmentation, ImagePolicy, augment, to_tensor
from data_pipelines.shards.format import TokenDocument, TokenSegment
from data_pipelines.shards.writer import ShardWriter
from data_pipelines.sources.registry import Source
from tokenizers_vq.image_tokenizer import ImageTokenizer
from tokenizers_vq.text import TextTokenizer
from tokenizers_vq.token_space import TokenSpace

IMAGES_AT_ONCE = 256
Progress = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class TokenizeConfig:
    """`copies` of every document are written, the first as it is, the others with augmented pictures.

    `workers` threads read and augment pictures; the result does not depend on their number.
    """

    copies: int = 1
    augmentations: tuple[Augmentation, ...] = ()
    seed: int = 0
    documents_per_shard: int = 1000
    workers: int = 0

    def __post_init__(self) -> None:
        if self.copies < 1 or (self.copies > 1 and not self.augmentations):
            raise ValueError(f"more than one copy needs an augmentation (flip, place), got {self}")


def make_token_space(text: TextTokenizer, image: ImageTokenizer) -> TokenSpace:
    """The token space of a pair of tokenizers."""
    return TokenSpace(
        text_size=text.size,
        text_hash=text.hash,
        codebook_size=image.codebook_size,
        image_hash=image.hash,
        layout=image.layout,
        specials=text.specials,
    )


def tokenize(
    source: Source,
    text: TextTokenizer,
    image: ImageTokenizer,
    out: Path,
    failures: FailureLog,
    config: TokenizeConfig,
    progress: Progress = lambda done: None,
) -> Path:
    """Write the shards of a source; `progress` is told the number of documents written each time."""
    space = make_token_space(text, image)
    policy = ImagePolicy(size=image.image_size)
    recipe = {name: value for name, value in asdict(config).items() if name != "workers"}
    described = {"fingerprint": source.fingerprint(), "notes": dict(source.notes), "tokenize": recipe}
    with ShardWriter(
        out,
        space,
        image_policy=asdict(policy),
        source=described,
        documents_per_shard=config.documents_per_shard,
    ) as writer:
        for batch in _batches(_copies(source, config)):
            for document in _encode(batch, text, image, space, policy, config, failures):
                writer.write(document)
            progress(len(batch))
        failures.close()
        writer.left_out = failures.summary()
        writer.source["notes"] = dict(source.notes)
    return out


def _copies(source: Source, config: TokenizeConfig) -> Iterator[tuple[Document, int]]:
    for document in source.documents():
        for copy in range(config.copies):
            yield document, copy


def _batches(items: Iterator[tuple[Document, int]]) -> Iterator[list[tuple[Document, int]]]:
    batch, images = [], 0
    for item in items:
        batch.append(item)
        images += sum(isinstance(segment, ImageSegment) for segment in item[0].segments)
        if images >= IMAGES_AT_ONCE:
            yield batch
            batch, images = [], 0
    if batch:
        yield batch


def _encode(
    batch: Sequence[tuple[Document, int]],
    text: TextTokenizer,
    image: ImageTokenizer,
    space: TokenSpace,
    policy: ImagePolicy,
    config: TokenizeConfig,
    failures: FailureLog,
) -> Iterator[TokenDocument]:
    usable: list[tuple[Document, int]] = []
    pixels: list[Tensor] = []
    with ThreadPoolExecutor(max(config.workers, 1)) as threads:
        opened = threads.map(lambda item: _pixels_or_damage(item[0], item[1], policy, config), batch)
        for (document, copy), tensors in zip(batch, opened, strict=True):
            if isinstance(tensors, DamagedSample):
                failures.drop(document.key, str(tensors))
            else:
                pixels += tensors
                usable.append((document, copy))
    ids = _image_ids(pixels, image, space)
    for document, copy in usable:
        segments = tuple(_segment(segment, text, ids) for segment in document.segments)
        key = document.key if copy == 0 else f"{document.key}+{copy}"
        yield TokenDocument(key=key, segments=segments, meta={**document.meta, "copy": copy})


def _pixels_or_damage(
    document: Document, copy: int, policy: ImagePolicy, config: TokenizeConfig
) -> list[Tensor] | DamagedSample:
    try:
        return _pixels(document, copy, policy, config)
    except DamagedSample as error:
        return error


def _pixels(document: Document, copy: int, policy: ImagePolicy, config: TokenizeConfig) -> list[Tensor]:
    tensors = []
    for index, segment in enumerate(document.segments):
        if isinstance(segment, ImageSegment):
            picture = policy.apply(segment.open(), segment.role)
            if copy:
                random = Random(f"{config.seed}-{document.key}-{copy}-{index}")
                picture = augment(picture, config.augmentations, random)
            tensors.append(to_tensor(picture))
    return tensors


def _image_ids(pixels: list[Tensor], image: ImageTokenizer, space: TokenSpace) -> Iterator[Tensor]:
    batches = [image.encode(torch.stack(pixels[i : i + IMAGES_AT_ONCE])) for i in range(0, len(pixels), IMAGES_AT_ONCE)]
    return (space.to_image_ids(codes) for batch in batches for codes in batch)


def _segment(segment: TextSegment | ImageSegment, text: TextTokenizer, image_ids: Iterator[Tensor]) -> TokenSegment:
    if isinstance(segment, TextSegment):
        ids = torch.tensor(text.encode(segment.text), dtype=torch.int64)
        return TokenSegment(kind="text", role=segment.role, ids=ids.numpy())
    return TokenSegment(kind="image", role=segment.role, ids=next(image_ids).numpy())


def train_text_tokenizer(source: Source, vocab_size: int) -> TextTokenizer:
    """Byte-level BPE on all texts of a source."""
    texts = (s.text for document in source.documents() for s in document.segments if isinstance(s, TextSegment))
    return TextTokenizer.train(texts, vocab_size)


def data_hash(folder: Path) -> str:
    """SHA-256 of a folder's manifest."""
    return hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
