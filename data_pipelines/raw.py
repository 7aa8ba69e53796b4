"""Streaming tokenization: documents of a source become ids while training goes on, without shards in between."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, overload

import numpy as np

from data_pipelines.datamodule import TokenDataModule
from data_pipelines.documents import DamagedSample, Document, ImageSegment, TextSegment
from data_pipelines.failures import FailureLog
from data_pipelines.images import ImagePolicy, to_tensor
from data_pipelines.planning import StreamConfig
from data_pipelines.shards.format import DocumentSequence, TokenDocument, TokenSegment
from data_pipelines.sources.registry import open_source
from data_pipelines.templates import TemplateConfig
from data_pipelines.tokenize import make_token_space
from tokenizers_vq.image_tokenizer import ImageTokenizer
from tokenizers_vq.text import TextTokenizer
from tokenizers_vq.token_space import TokenSpace

CODES_KEPT = 50_000
"""Pictures whose codes a loader process remembers; later epochs do not encode them again."""


class Codes(Sequence[int]):
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
        return self.documents.codes(*self.place).astype(dtype or np.int64)


class RawDocuments(DocumentSequence):
    """Documents of a source as TokenDocuments. Text is encoded when a document is asked for, pictures when trained on.

    A picture that turns out damaged by then stops training with its name; `usable` finds them beforehand.
    """

    def __init__(self, documents: Sequence[Document], text: TextTokenizer, image: ImageTokenizer) -> None:
        self.documents, self.text, self.image = documents, text, image
        self.space = make_token_space(text, image)
        self.policy = ImagePolicy(size=image.image_size)
        self.codes = lru_cache(maxsize=CODES_KEPT)(self._codes)

    @property
    def keys(self) -> list[str]:
        """The documents' keys, in order."""
        return [document.key for document in self.documents]

    def __len__(self) -> int:
        return len(self.documents)

    def document(self, index: int) -> TokenDocument:
        """One document, its pictures not read yet."""
        document = self.documents[index]
        segments = tuple(self._segment(index, number, segment) for number, segment in enumerate(document.segments))
        return TokenDocument(key=document.key, segments=segments, meta=document.meta)

    def _segment(self, document: int, number: int, segment: TextSegment | ImageSegment) -> TokenSegment:
        if isinstance(segment, TextSegment):
            ids = np.asarray(self.text.encode(segment.text), dtype=np.int64)
            return TokenSegment(kind="text", role=segment.role, ids=ids)
        codes: Any = Codes(document, number, self.image.layout.num_codes, self)
        return TokenSegment(kind="image", role=segment.role, ids=codes)

    def _codes(self, document: int, number: int) -> np.ndarray:
        segment = self.documents[document].segments[number]
        assert isinstance(segment, ImageSegment)
        pixels = to_tensor(self.policy.apply(segment.open(), segment.role))
        return self.space.to_image_ids(self.image.encode(pixels[None]).cpu())[0].numpy()


def usable(documents: Sequence[Document], failures: FailureLog) -> list[Document]:
    """Documents whose pictures can all be read; the others are named and counted in `failures`."""
    kept = []
    for document in documents:
        try:
            for segment in document.segments:
                if isinstance(segment, ImageSegment):
                    segment.open()
        except DamagedSample as error:
            failures.revoke(document.key, str(error))
        else:
            kept.append(document)
    failures.close()
    return kept


class RawDataModule(TokenDataModule):
    """As TokenDataModule, but on the documents of a source, tokenized by the loader while training goes on.

    tokenizers: a folder with `image_tokenizer/` and `text_tokenizer/`, as `unimodal tokenize` leaves beside its shards.
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
    ) -> None:
        super().__init__([], stream, templates, None, validation_share, num_workers)
        self.source, self.path, self.split = source, path, split
        self.max_bad, self.source_options = max_bad, source_options or {}
        self.tokenizers = Path(tokenizers)

    def setup(self, stage: str) -> None:
        """Open the source and look at every picture once, so that damage is found before training."""
        del stage
        if self.train_sources:
            return
        image = ImageTokenizer.open(self.tokenizers / "image_tokenizer")
        text = TextTokenizer.open(self.tokenizers / "text_tokenizer")
        failures = FailureLog(limit=self.max_bad)
        source = open_source(self.source, path=self.path, split=self.split, failures=failures, **self.source_options)
        documents = RawDocuments(usable(list(source.documents()), failures), text, image)
        self.space: TokenSpace | None = documents.space
        self.folders = [self.tokenizers]
        self.train_sources = [self.side([documents], held_out=False)]
        self.val_documents = self.side([documents], held_out=True)
