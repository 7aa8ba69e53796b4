"""Streaming tokenization: documents of a source become ids during training, without shards in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from data_pipelines.datamodule import TokenDataModule
from data_pipelines.deferred import Deferred
from data_pipelines.documents import DamagedSample, Document, ImageSegment, TextSegment
from data_pipelines.encoding import image_bodies, spelled
from data_pipelines.failures import FailureLog
from data_pipelines.images import ImagePolicy, PixelSize, to_tensor
from data_pipelines.media_makers import LatentsMaker, MediaMaker, PatchesMaker
from data_pipelines.planning import StreamConfig
from data_pipelines.shards.format import DocumentSequence, TokenDocument, TokenSegment
from data_pipelines.sources.registry import open_source
from data_pipelines.spec import Contents
from data_pipelines.templates import TemplateConfig
from data_pipelines.tokenize import check_media, layout_of, make_token_space
from tokenizers_vq.autoencoder import open_autoencoder
from tokenizers_vq.bundle_files import AUTOENCODER, IMAGE_TOKENIZER, TEXT_TOKENIZER
from tokenizers_vq.image_tokenizer import ImageTokenizer
from tokenizers_vq.media import LATENTS, PATCHES, PatchSpec
from tokenizers_vq.text import TextTokenizer

BYTES_KEPT = 256 * 2**20
"""Of codes, and as many of each kind of media, that a loader process keeps; later epochs do not make those again."""


class Sizes(NamedTuple):
    """In pixels, of a picture as it is, and as the image tokenizer takes it."""

    original: PixelSize
    coded: PixelSize


class Usable(NamedTuple):
    """A document whose pictures can be read, and for each segment that is one, its sizes."""

    document: Document
    sizes: dict[int, Sizes]


MakeMedia = Callable[[int, int], np.ndarray]
"""Numbers of a document and of its segment -> the media (R, K, C) of that picture."""


class RawDocuments(DocumentSequence):
    """Documents of a source as TokenDocuments. Text is encoded when a document is asked for, pictures when trained on.

    Every image is opened once beforehand, for its size; those that are damaged are named and counted in `failures`
    with their documents. A picture that is damaged only later stops training with its name. `media` makes what stands
    beside the codes.
    """

    def __init__(
        self,
        documents: Sequence[Document],
        text: TextTokenizer,
        image: ImageTokenizer,
        failures: FailureLog,
        aspect_ratio: float = 1.0,
        media: Sequence[MediaMaker] = (),
    ) -> None:
        check_media(media, image, aspect_ratio)
        self.text, self.image = text, image
        self.space = make_token_space(text, image, layout_of(image, aspect_ratio))
        self.policy = ImagePolicy.of(image, self.space.layout)
        self.documents = usable(documents, text, self.policy, failures)
        max_length = max(map(self.space.layout.span_of, self.space.layout.sizes))
        self.body = lru_cache(maxsize=BYTES_KEPT // (8 * max_length))(self._body)
        self.makers = {maker.spec.name: maker for maker in media}
        self.media = {name: _remembering(partial(self._media, name), maker) for name, maker in self.makers.items()}

    @property
    def keys(self) -> list[str]:
        """The documents' keys, in order."""
        return [document.key for document, _ in self.documents]

    def __len__(self) -> int:
        return len(self.documents)

    def document(self, index: int) -> TokenDocument:
        """One document, its pictures not read yet."""
        document = self.documents[index].document
        segments = tuple(self._segment(index, number, segment) for number, segment in enumerate(document.segments))
        return TokenDocument(key=document.key, segments=segments, meta=document.meta)

    def _segment(self, document: int, number: int, segment: TextSegment | ImageSegment) -> TokenSegment:
        if isinstance(segment, TextSegment):
            return TokenSegment(kind="text", role=segment.role, ids=spelled(segment, self.text))
        original, coded = self.documents[document].sizes[number]
        grid = self.image.size_of(*coded)
        ids: Any = Deferred((self.space.layout.span_of(grid) - 2,), partial(self.body, document, number))
        media: dict[str, Any] = {}
        for name, maker in self.makers.items():
            shape = (*maker.grid(original, coded), maker.spec.width)
            media[name] = Deferred(shape, partial(self.media[name], document, number))
        return TokenSegment(kind="image", role=segment.role, ids=ids, media=media)

    def _body(self, document: int, number: int) -> np.ndarray:
        return image_bodies([self._picture(document, number)[1]], self.image, self.space)[0]

    def _media(self, name: str, document: int, number: int) -> np.ndarray:
        maker = self.makers[name]
        return maker.make([maker.read(*self._picture(document, number))])[0]

    def _picture(self, document: int, number: int) -> tuple[Image.Image, Tensor]:
        """As it is, and (3, H, W) as the image tokenizer takes it."""
        segment = self.documents[document].document.segments[number]
        assert isinstance(segment, ImageSegment)
        picture = segment.open()
        return picture, to_tensor(self.policy.apply(picture, segment.role))


def _remembering(make: MakeMedia, maker: MediaMaker) -> MakeMedia:
    """The same function, with as many of its results kept as `BYTES_KEPT` holds of the largest."""
    largest = maker.spec.max_side**2 * maker.spec.width
    return lru_cache(maxsize=max(1, BYTES_KEPT // (2 * largest)))(make)


def usable(
    documents: Sequence[Document], text: TextTokenizer, policy: ImagePolicy, failures: FailureLog
) -> list[Usable]:
    """Documents whose pictures can all be read, and texts written; the others are counted by name in `failures`."""
    kept = []
    for document in documents:
        pictures = {n: segment for n, segment in enumerate(document.segments) if isinstance(segment, ImageSegment)}
        try:
            for segment in document.segments:
                if isinstance(segment, TextSegment):
                    spelled(segment, text)
            sizes = {number: _sizes(segment.open(), policy) for number, segment in pictures.items()}
        except DamagedSample as error:
            failures.revoke(document.key, str(error))
        else:
            kept.append(Usable(document, sizes))
    failures.close()
    return kept


def _sizes(picture: Image.Image, policy: ImagePolicy) -> Sizes:
    return Sizes((picture.height, picture.width), policy.size_of(picture))


class RawDataModule(TokenDataModule):
    """As TokenDataModule, but on the documents of a source, tokenized by the loader during training.

    tokenizers: a folder with `image_tokenizer/` and `text_tokenizer/`, as `unimodal tokenize` leaves beside its shards;
    the flow branch takes its `autoencoder/` as well.
    aspect_ratio, max_patches: as `unimodal tokenize` takes them; the latter, and `templates.patch_size`, where pictures
    are seen as patches.
    The same documents give the same batches, in the same order, as a shard that holds all of them; pictures are encoded
    one by one here and many at a time there, which may round otherwise.
    """

    def __init__(
        self,
        source: str,
        tokenizers: Path,
        path: Path | None = None,
        split: str = "train",
        stream: StreamConfig | None = None,
        templates: TemplateConfig | None = None,
        validation_share: float = 0.02,
        num_workers: int = 0,
        max_bad: float = 0.1,
        source_options: dict[str, Any] | None = None,
        aspect_ratio: float = 1.0,
        max_patches: int | None = None,
    ) -> None:
        super().__init__([], stream, templates, None, validation_share, num_workers)
        self.source, self.path, self.split = source, path, split
        self.max_bad, self.source_options = max_bad, source_options or {}
        self.tokenizers, self.aspect_ratio, self.max_patches = Path(tokenizers), aspect_ratio, max_patches

    def setup(self, stage: str) -> None:
        """Open the source and every image once, so that damage is found before training."""
        del stage
        if self.train_sources:
            return
        image = ImageTokenizer.open(self.tokenizers / IMAGE_TOKENIZER)
        text = TextTokenizer.open(self.tokenizers / TEXT_TOKENIZER)
        makers = {LATENTS: self._latents, PATCHES: self._patches}
        media = [makers[name]() for name in self.templates.media]
        failures = FailureLog(limit=self.max_bad)
        source = open_source(self.source, path=self.path, split=self.split, failures=failures, **self.source_options)
        documents = RawDocuments(list(source.documents()), text, image, failures, self.aspect_ratio, media)
        self.train_sources = [self.split_documents([documents], held_out=False)]
        self.val_documents = self.split_documents([documents], held_out=True)
        self.contents = [Contents(documents=len(documents), sha256=source.fingerprint())]
        specs = {maker.spec.name: maker.spec for maker in media}
        self.describe(documents.space, specs, self.tokenizers)

    def _latents(self) -> LatentsMaker:
        """Raises ValueError where the autoencoder is not there."""
        folder = self.tokenizers / AUTOENCODER
        if not folder.is_dir():
            raise ValueError(
                f"the flow branch needs {folder}, which is not there: tokenize with --autoencoder beforehand"
            )
        return LatentsMaker(open_autoencoder(folder))

    def _patches(self) -> PatchesMaker:
        size = PatchSpec.size if self.templates.patch_size is None else self.templates.patch_size
        return PatchesMaker(PatchSpec.of(size, self.max_patches))
