"""Tokenize: documents of a source become token shards, shard by shard, and a job that was killed resumes.

A shard is made from its own documents alone, whoever makes it and whenever: that one rule gives resuming, a share of
the shards for each rank, and the same bytes in every case.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from data_pipelines.documents import DamagedSample, TextSegment
from data_pipelines.encoding import DocumentCopy, Encoder, EncodingBatch, batches, copy_key, read_ahead
from data_pipelines.failures import FailureLog
from data_pipelines.images import Augmentation, ImagePolicy
from data_pipelines.media_makers import IMAGES_AT_ONCE, MediaMaker
from data_pipelines.shards.format import Manifest, TokenDocument
from data_pipelines.shards.parts import FinishedShard, JobParts, SkippedCopy
from data_pipelines.shards.writer import check_unwritten, write_manifest, write_shard
from data_pipelines.sources.registry import Source
from tokenizers_vq.image_tokenizer import ImageTokenizer
from tokenizers_vq.layout import GridLayout, Layout, bucket_sizes
from tokenizers_vq.text import TextTokenizer
from tokenizers_vq.token_space import TokenSpace


@dataclass(frozen=True, kw_only=True)
class TokenizeHooks:
    """`started` is called once the folder is known to be this job's, `progress` with the documents done each time."""

    started: Callable[[], None] = lambda: None
    progress: Callable[[int], None] = lambda done: None


@dataclass(frozen=True, kw_only=True)
class TokenizeConfig:
    """`copies` of every document are written, the first as it is, the others with augmented pictures.

    `workers` threads read and augment pictures, `images_at_once` of them are encoded together, and of the shards rank r
    of w makes numbers r, r + w, ... The result depends on none of these.
    """

    copies: int = 1
    augmentations: tuple[Augmentation, ...] = ()
    seed: int = 0
    aspect_ratio: float = 1.0
    """The maximum ratio of an image's sides; 1 is the image tokenizer's square, more is a grid of several sizes."""
    documents_per_shard: int = 1000
    source_options: Mapping[str, Any] = field(default_factory=dict)
    """What the source was opened with; recorded, and not to change when a job resumes."""
    workers: int = 0
    images_at_once: int = IMAGES_AT_ONCE
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.copies < 1 or (self.copies > 1 and not self.augmentations):
            raise ValueError(f"more than one copy needs an augmentation (flip, place), got {self}")
        if min(self.documents_per_shard, self.images_at_once) < 1 or self.workers < 0:
            raise ValueError(f"shards hold documents, encoders take images, and workers are 0 or more, got {self}")
        if not 1 <= self.aspect_ratio < math.inf:
            raise ValueError(f"an aspect ratio is longer to shorter side, at least 1, got {self.aspect_ratio}")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} of {self.world_size}: ranks are 0 to {self.world_size - 1}")

    def recipe(self) -> dict[str, Any]:
        """The settings that the result depends on."""
        return {k: v for k, v in asdict(self).items() if k not in ("workers", "images_at_once", "rank", "world_size")}


def layout_of(image: ImageTokenizer, aspect_ratio: float) -> Layout:
    """The tokenizer's square alone, or a grid of sizes with about as many codes and sides in a ratio up to this one.

    Raises ValueError for a ratio that no size but the square has, and where a place has several codes.
    """
    if aspect_ratio == 1:
        return image.layout
    if image.layout.rows != image.layout.columns:
        raise ValueError("an image tokenizer with several codes a place (residual VQ) takes squares alone")
    return GridLayout(sizes=bucket_sizes(image.layout.rows, aspect_ratio))


def make_token_space(text: TextTokenizer, image: ImageTokenizer, layout: Layout | None = None) -> TokenSpace:
    """The token space of a pair of tokenizers; its layout is the image tokenizer's square if none is given."""
    return TokenSpace(
        text_size=text.size,
        text_hash=text.hash,
        codebook_size=image.codebook_size,
        image_hash=image.hash,
        layout=layout or image.layout,
        specials=text.specials,
    )


def tokenize(
    source: Source,
    text: TextTokenizer,
    image: ImageTokenizer,
    out: Path,
    failures: FailureLog,
    config: TokenizeConfig,
    media: Sequence[MediaMaker] = (),
    hooks: TokenizeHooks | None = None,
) -> bool:
    """Write the shards of a source; True once the folder is whole, False while other ranks have shards to make.

    What `media` makes of every picture lies beside its codes. What an earlier, interrupted call left in the folder is
    kept. Raises ValueError for a folder that is whole already or was started with other settings.
    """
    check_unwritten(out)
    check_media(media, image, config.aspect_ratio)
    hooks = hooks or TokenizeHooks()
    space = make_token_space(text, image, layout_of(image, config.aspect_ratio))
    policy = ImagePolicy.of(image, space.layout)
    encoder = Encoder(
        text=text,
        image=image,
        space=space,
        policy=policy,
        augmentations=config.augmentations,
        seed=config.seed,
        media=media,
        images_at_once=config.images_at_once,
    )
    described = {"fingerprint": source.fingerprint(), "tokenize": config.recipe()}
    empty = Manifest(
        token_space=space.to_dict(),
        fingerprint=space.fingerprint,
        image_policy=asdict(policy),
        source=described,
        shards=(),
        media={maker.spec.name: maker.spec for maker in media},
    )
    stated = {**described, "token space": empty.fingerprint, "image policy": empty.image_policy}
    parts = JobParts(out, stated | {name: spec.to_dict() for name, spec in empty.media.items()})
    hooks.started()
    job = _Job(source, encoder, parts, failures, config, hooks.progress)
    job.run()
    return job.merge(empty)


def check_media(media: Sequence[MediaMaker], image: ImageTokenizer, aspect_ratio: float) -> None:
    """Raises ValueError for media that do not go with the image tokenizer or with pictures of several shapes."""
    for maker in media:
        maker.check(image, aspect_ratio)


class _Job:
    """One process's share of the shards."""

    def __init__(
        self,
        source: Source,
        encoder: Encoder,
        parts: JobParts,
        failures: FailureLog,
        config: TokenizeConfig,
        progress: Callable[[int], None],
    ) -> None:
        self.source, self.encoder, self.parts, self.failures = source, encoder, parts, failures
        self.config, self.progress = config, progress
        self.num_shards = 0
        self.skipped: list[str] = []
        """Reasons for which documents were skipped after the source had counted them as good."""

    def run(self) -> None:
        documents: list[TokenDocument] = []
        skipped: list[SkippedCopy] = []
        notes: Counter[str] = Counter()
        for batch, read in read_ahead(self._work(), self.encoder, self.config.workers):
            usable = []
            for (document, copy), found in zip(batch.items, read, strict=True):
                if isinstance(found, DamagedSample):
                    skipped.append(SkippedCopy(name=document.key, copy=copy, reason=str(found)))
                    self._skip(skipped[-1])
                else:
                    usable.append(((document, copy), found))
                    notes.update(found.notes)
            documents += self.encoder.encode([item for item, _ in usable], [found for _, found in usable])
            self.progress(len(batch.items))
            if batch.last:
                self._finish(batch.shard, documents, skipped, notes)
                documents, skipped, notes = [], [], Counter()
        self.failures.close()

    def merge(self, empty: Manifest) -> bool:
        """Write the manifest if every shard is there."""
        parts = self.parts.all(self.num_shards)
        if parts is None:
            return False
        before_encoding = Counter(self.failures.summary()) - Counter(self.skipped)
        skipped = before_encoding + Counter(one.reason for part in parts for one in part.skipped)
        notes = sum((Counter(part.notes) for part in parts), Counter())
        manifest = replace(
            empty,
            source={**empty.source, "notes": {**self.source.notes, **notes}},
            shards=tuple(part.entry for part in parts if part.entry is not None),
            skipped=dict(sorted(skipped.items())),
        )
        write_manifest(self.parts.shards, manifest)
        self.parts.remove()
        return True

    def _work(self) -> Iterator[EncodingBatch]:
        """Batches of the shards that are this rank's and not made yet."""
        for items in _groups(self._copies(), self.config.documents_per_shard):
            shard = self.num_shards
            self.num_shards += 1
            if part := self.parts.finished(shard):
                for one in part.skipped:
                    self._skip(one)
                self.progress(len(items))
            elif shard % self.config.world_size == self.config.rank:
                yield from batches(shard, items, self.config.images_at_once)
            else:
                self.progress(len(items))

    def _copies(self) -> Iterator[DocumentCopy]:
        keys: set[str] = set()
        for document in self.source.documents():
            copy_keys = [copy_key(document.key, copy) for copy in range(self.config.copies)]
            if "." in document.key:
                self.failures.revoke(document.key, "its key holds a dot, which parts a key from its member in a tar")
            elif not keys.isdisjoint(copy_keys):
                self.failures.revoke(document.key, "an earlier document has the same key")
            else:
                keys.update(copy_keys)
                yield from ((document, copy) for copy in range(self.config.copies))

    def _skip(self, one: SkippedCopy) -> None:
        """Every copy is named in its shard's part; against the limit a document counts once."""
        if one.copy == 0:
            self.skipped.append(one.reason)
            self.failures.revoke(one.name, one.reason)

    def _finish(
        self, shard: int, documents: list[TokenDocument], skipped: list[SkippedCopy], notes: Counter[str]
    ) -> None:
        entry = None
        if documents:
            media = {maker.spec.name: maker.spec for maker in self.encoder.media}
            entry = write_shard(self.parts.shards, shard, documents, self.encoder.space, media)
        self.parts.finish(shard, FinishedShard(entry=entry, skipped=tuple(skipped), notes=dict(notes)))


def _groups(items: Iterator[DocumentCopy], size: int) -> Iterator[list[DocumentCopy]]:
    while group := list(itertools.islice(items, size)):
        yield group


def train_text_tokenizer(source: Source, vocab_size: int) -> TextTokenizer:
    """Byte-level BPE on all texts of a source."""
    texts = (s.text for document in source.documents() for s in document.segments if isinstance(s, TextSegment))
    return TextTokenizer.train(texts, vocab_size)
