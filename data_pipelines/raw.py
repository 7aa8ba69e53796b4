"""Streaming tokenization: documents of a source become ids while training goes on, without shards in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from data_pipelines.datamodule import TokenDataModule
from data_pipelines.documents import DamagedSample, Document, ImageSegment, TextSegment
from data_pipelines.encoding import image_bodies, image_latents
from data_pipelines.failures import FailureLog
from data_pipelines.images import ImagePolicy, PatchPolicy, PixelSize, to_tensor
from data_pipelines.planning import StreamConfig
from data_pipelines.shards.format import DocumentSequence, TokenDocument, TokenSegment
from data_pipelines.sources.registry import open_source
from data_pipelines.templates import TemplateConfig
from data_pipelines.tokenize import check_squares, describe_autoencoder, layout_of, make_token_space
from tokenizers_vq.autoencoder import open_autoencoder
from tokenizers_vq.image_tokenizer import ImageTokenizer
from tokenizers_vq.latents import LatentAutoencoder
from tokenizers_vq.text import TextTokenizer
from tokenizers_vq.token_space import TokenSpace

BYTES_KEPT = 256 * 2**20
"""Of codes, and as many of latents, that a loader process remembers; later epochs do not encode those again."""


class Deferred:
    """An array of known shape that is made when numpy asks for it."""

    def __init__(self, shape: tuple[int, ...], make: Callable[[], np.ndarray]) -> None:
        self.shape, self.make = shape, make

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        return self.__array__()[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del copy
        made = self.make()
        return made if dtype is None else made.astype(dtype)


class Sizes(NamedTuple):
    """In pixels, of a picture as the tokenizers take it, and with patches as a ViT sees it."""

    coded: PixelSize
    seen: PixelSize | None


class Usable(NamedTuple):
    """A document whose pictures can be read, and for each segment that is one, its sizes."""

    document: Document
    sizes: dict[int, Sizes]


class RawDocuments(DocumentSequence):
    """Documents of a source as TokenDocuments. Text is encoded when a document is asked for, pictures when trained on.

    Every picture is looked at once beforehand, for its size; those that are damaged are named and counted in `failures`
    with their documents. A picture that is damaged only later stops training with its name. With an autoencoder there
    are latents beside the codes, and with `patches` pixels for a ViT.
    """

    def __init__(
        self,
        documents: Sequence[Document],
        text: TextTokenizer,
        image: ImageTokenizer,
        failures: FailureLog,
        aspect_ratio: float = 1.0,
        autoencoder: LatentAutoencoder | None = None,
        patches: PatchPolicy | None = None,
    ) -> None:
        check_squares(autoencoder, aspect_ratio)
        self.text, self.image, self.autoencoder, self.patches = text, image, autoencoder, patches
        self.space = make_token_space(text, image, layout_of(image, aspect_ratio))
        self.policy = ImagePolicy.of(image, self.space.layout)
        self.documents = usable(documents, self.policy, failures, patches)
        longest = max(map(self.space.layout.span_of, self.space.layout.sizes))
        self.body = lru_cache(maxsize=BYTES_KEPT // (8 * longest))(self._body)
        values = autoencoder.grid**2 * autoencoder.latent_dim if autoencoder else 1
        self.latents = lru_cache(maxsize=BYTES_KEPT // (2 * values))(self._latents)

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
            ids = np.asarray(self.text.encode(segment.text), dtype=np.int64)
            return TokenSegment(kind="text", role=segment.role, ids=ids)
        place, (coded, seen) = (document, number), self.documents[document].sizes[number]
        length = self.space.layout.span_of(_grid(coded, self.image.reduction)) - 2
        deferred: dict[str, Any] = {"ids": Deferred((length,), partial(self.body, *place))}
        if self.autoencoder is not None:
            shape = (*_grid(coded, self.autoencoder.reduction), self.autoencoder.latent_dim)
            deferred["latents"] = Deferred(shape, partial(self.latents, *place))
        if seen is not None:
            deferred["pixels"] = Deferred((*seen, 3), partial(self._seen, *place))
        return TokenSegment(kind="image", role=segment.role, **deferred)

    def _body(self, document: int, number: int) -> np.ndarray:
        return image_bodies([self._pixels(document, number)], self.image, self.space)[0]

    def _latents(self, document: int, number: int) -> np.ndarray:
        assert self.autoencoder is not None
        return image_latents([self._pixels(document, number)], self.autoencoder)[0]

    def _pixels(self, document: int, number: int) -> Tensor:
        segment = self._picture(document, number)
        return to_tensor(self.policy.apply(segment.open(), segment.role))

    def _seen(self, document: int, number: int) -> np.ndarray:
        assert self.patches is not None
        return self.patches.apply(self._picture(document, number).open())

    def _picture(self, document: int, number: int) -> ImageSegment:
        segment = self.documents[document].document.segments[number]
        assert isinstance(segment, ImageSegment)
        return segment


def _grid(size: PixelSize, reduction: int) -> tuple[int, int]:
    return size[0] // reduction, size[1] // reduction


def usable(
    documents: Sequence[Document], policy: ImagePolicy, failures: FailureLog, patches: PatchPolicy | None = None
) -> list[Usable]:
    """Documents whose pictures can all be read; the others are named and counted in `failures`."""
    kept = []
    for document in documents:
        pictures = {n: segment for n, segment in enumerate(document.segments) if isinstance(segment, ImageSegment)}
        try:
            sizes = {number: _sizes(segment.open(), policy, patches) for number, segment in pictures.items()}
        except DamagedSample as error:
            failures.revoke(document.key, str(error))
        else:
            kept.append(Usable(document, sizes))
    failures.close()
    return kept


def _sizes(picture: Image.Image, policy: ImagePolicy, patches: PatchPolicy | None) -> Sizes:
    if patches is None:
        return Sizes(policy.size_of(picture), None)
    rows, columns = patches.grid(picture.height, picture.width)
    return Sizes(policy.size_of(picture), (rows * patches.patch, columns * patches.patch))


class RawDataModule(TokenDataModule):
    """As TokenDataModule, but on the documents of a source, tokenized by the loader while training goes on.

    tokenizers: a folder with `image_tokenizer/` and `text_tokenizer/`, as `unimodal tokenize` leaves beside its shards;
    the flow branch takes its `autoencoder/` as well.
    aspect_ratio, most_patches: as `unimodal tokenize` takes them; the latter where templates ask for a ViT's patches.
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
        most_patches: int | None = None,
    ) -> None:
        super().__init__([], stream, templates, None, validation_share, num_workers)
        self.source, self.path, self.split = source, path, split
        self.max_bad, self.source_options = max_bad, source_options or {}
        self.tokenizers, self.aspect_ratio, self.most_patches = Path(tokenizers), aspect_ratio, most_patches

    def setup(self, stage: str) -> None:
        """Open the source and look at every picture once, so that damage is found before training."""
        del stage
        if self.train_sources:
            return
        image = ImageTokenizer.open(self.tokenizers / "image_tokenizer")
        text = TextTokenizer.open(self.tokenizers / "text_tokenizer")
        autoencoder = self._autoencoder()
        self.autoencoder = describe_autoencoder(autoencoder, image) if autoencoder else None
        patches = PatchPolicy.of(patch, self.most_patches) if (patch := self.templates.vit_patch) else None
        self.patches = asdict(patches) if patches else None
        failures = FailureLog(limit=self.max_bad)
        source = open_source(self.source, path=self.path, split=self.split, failures=failures, **self.source_options)
        shape = (self.aspect_ratio, autoencoder, patches)
        documents = RawDocuments(list(source.documents()), text, image, failures, *shape)
        self.space: TokenSpace | None = documents.space
        self.folders = [self.tokenizers]
        self.train_sources = [self.side([documents], held_out=False)]
        self.val_documents = self.side([documents], held_out=True)

    def _autoencoder(self) -> LatentAutoencoder | None:
        """What latents are made with, None where none are asked for. Raises ValueError where it is not there."""
        if self.templates.latents is None:
            return None
        folder = self.tokenizers / "autoencoder"
        if not folder.is_dir():
            raise ValueError(
                f"the flow branch needs {folder}, which is not there: tokenize with --autoencoder beforehand"
            )
        return open_autoencoder(folder)
