"""Streaming tokenization: documents of a source become ids while training goes on, without shards in between."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np

from data_pipelines.datamodule import TokenDataModule
from data_pipelines.documents import DamagedSample, Document, ImageSegment, TextSegment
from data_pipelines.encoding import image_bodies
from data_pipelines.failures import FailureLog
from data_pipelines.images import ImagePolicy, PixelSize, to_tensor
from data_pipelines.planning import StreamConfig
from data_pipelines.shards.format import DocumentSequence, TokenDocument, TokenSegment
from data_pipelines.sources.registry import open_source
from data_pipelines.templates import TemplateConfig
from data_pipelines.tokenize import layout_of, make_token_space
from tokenizers_vq.image_tokenizer import ImageTokenizer
from tokenizers_vq.text import TextTokenizer
from tokenizers_vq.token_space import TokenSpace

CODES_KEPT = 50_000
"""Pictures whose codes a loader process remembers; later epochs do not encode them again."""


class Body(Sequence[int]):
    """The ids of a picture, of known number; it is read and encoded when numpy asks for them."""

    def __init__(self, document: int, segment: int, length: int, documents: RawDocuments) -> None:
        self.place, self.length, self.documents = (document, segment), length, documents

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> np.ndarray: ...
    def __getitem__(self, index: int | slice) -> int | np.ndarray:
        return self.__array__()[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del copy
        return self.documents.body(*self.place).astype(dtype or np.int64)


class Usable(NamedTuple):
    """A document whose pictures can be read, and for each segment that is one, the size that the policy gives it."""

    document: Document
    sizes: dict[int, PixelSize]


class RawDocuments(DocumentSequence):
    """Documents of a source as TokenDocuments. Text is encoded when a document is asked for, pictures when trained on.

    Every picture is looked at once beforehand, for its size; those that are damaged are named and counted in `failures`
    with their documents. A picture that is damaged only later stops training with its name.
    """

    def __init__(
        self,
        documents: Sequence[Document],
        text: TextTokenizer,
        image: ImageTokenizer,
        failures: FailureLog,
        aspect_ratio: float = 1.0,
    ) -> None:
        self.text, self.image = text, image
        self.space = make_token_space(text, image, layout_of(image, aspect_ratio))
        self.policy = ImagePolicy.of(image, self.space.layout)
        self.documents = usable(documents, self.policy, failures)
        self.body = lru_cache(maxsize=CODES_KEPT)(self._body)

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
        height, width = self.documents[document].sizes[number]
        size = (height // self.image.reduction, width // self.image.reduction)
        ids: Any = Body(document, number, self.space.layout.span_of(size) - 2, self)
        return TokenSegment(kind="image", role=segment.role, ids=ids)

    def _body(self, document: int, number: int) -> np.ndarray:
        segment = self.documents[document].document.segments[number]
        assert isinstance(segment, ImageSegment)
        pixels = to_tensor(self.policy.apply(segment.open(), segment.role))
        return image_bodies([pixels], self.image, self.space)[0]


def usable(documents: Sequence[Document], policy: ImagePolicy, failures: FailureLog) -> list[Usable]:
    """Documents whose pictures can all be read; the others are named and counted in `failures`."""
    kept = []
    for document in documents:
        pictures = {n: segment for n, segment in enumerate(document.segments) if isinstance(segment, ImageSegment)}
        try:
            sizes = {number: policy.size_of(segment.open()) for number, segment in pictures.items()}
        except DamagedSample as error:
            failures.revoke(document.key, str(error))
        else:
            kept.append(Usable(document, sizes))
    failures.close()
    return kept


class RawDataModule(TokenDataModule):
    """As TokenDataModule, but on the documents of a source, tokenized by the loader while training goes on.

    tokenizers: a folder with `image_tokenizer/` and `text_tokenizer/`, as `unimodal tokenize` leaves beside its shards.
    aspect_ratio: the longest ratio of an image's sides, as `unimodal tokenize --aspect-ratio` takes it.
    The same documents give the same batches, in the same order, as a shard that holds all of them.
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
    ) -> None:
        super().__init__([], stream, templates, None, validation_share, num_workers)
        self.source, self.path, self.split = source, path, split
        self.max_bad, self.source_options = max_bad, source_options or {}
        self.tokenizers, self.aspect_ratio = Path(tokenizers), aspect_ratio

    def setup(self, stage: str) -> None:
        """Open the source and look at every picture once, so that damage is found before training."""
        del stage
        if self.train_sources:
            return
        if self.templates.latents is not None:
            raise ValueError("the flow branch trains on shards with latents: tokenize with --autoencoder beforehand")
        image = ImageTokenizer.open(self.tokenizers / "image_tokenizer")
        text = TextTokenizer.open(self.tokenizers / "text_tokenizer")
        failures = FailureLog(limit=self.max_bad)
        source = open_source(self.source, path=self.path, split=self.split, failures=failures, **self.source_options)
        documents = RawDocuments(list(source.documents()), text, image, failures, self.aspect_ratio)
        self.space: TokenSpace | None = documents.space
        self.folders = [self.tokenizers]
        self.train_sources = [self.side([documents], held_out=False)]
        self.val_documents = self.side([documents], held_out=True)
