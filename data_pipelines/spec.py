"""DataSpec: what a data module tells of itself to the module that trains on it and to callbacks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipelines.mixture import MixtureConfig
from data_pipelines.shards.format import Manifest, ShardEntry, TokenDocument
from tokenizers_vq.media import MediaSpec
from tokenizers_vq.token_space import TokenSpace


@dataclass(frozen=True, kw_only=True)
class FolderTotals:
    """What a folder of shards holds, held-out documents included."""

    name: str
    documents: int
    text_tokens: int
    image_tokens: int

    @property
    def tokens(self) -> int:
        """Of both kinds."""
        return self.text_tokens + self.image_tokens

    @classmethod
    def of(cls, name: str, entries: Sequence[ShardEntry]) -> FolderTotals:
        """The sums over a manifest's shards."""
        return cls(
            name=name,
            documents=sum(entry.documents for entry in entries),
            text_tokens=sum(entry.text_tokens for entry in entries),
            image_tokens=sum(entry.image_tokens for entry in entries),
        )


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What tells one source of documents from another, wherever it lies."""

    documents: int
    sha256: str

    @classmethod
    def of(cls, manifest: Manifest) -> Contents:
        """Of a folder of shards: the hashes of its files, in order."""
        digest = hashlib.sha256("".join(entry.sha256 for entry in manifest.shards).encode())
        return cls(documents=sum(entry.documents for entry in manifest.shards), sha256=digest.hexdigest())


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """What every data module that trains the transformer has as `.spec` after `setup`.

    `media` are those that batches may hold. `tokenizers` is the folder with `text_tokenizer/`, `image_tokenizer/` and,
    with latents, `autoencoder/`. `ends` says that the stream stops once the data is exhausted. `held_out` are documents
    for samples, `totals` what each source holds, `mixture` how they are mixed, and `batch_tokens` the tokens of one
    batch, padding included.
    """

    space: TokenSpace
    media: Mapping[str, MediaSpec] = field(default_factory=dict)
    tokenizers: Path | None = None
    ends: bool = False
    held_out: Sequence[TokenDocument] = ()
    totals: Sequence[FolderTotals] = ()
    mixture: MixtureConfig | None = None
    batch_tokens: int = 0

    @property
    def tokenizers_folder(self) -> Path:
        """Raises ValueError where the data lies beside no tokenizers."""
        if self.tokenizers is None:
            raise ValueError("no tokenizers lie beside this data: train on shards or on a source with `tokenizers`")
        return self.tokenizers


class Described:
    """A data module that has a spec once it was set up."""

    _spec: DataSpec | None = None

    @property
    def spec(self) -> DataSpec:
        """What the data is, once it was set up."""
        if self._spec is None:
            raise ValueError("call setup first")
        return self._spec


def data_spec(trainer: Any) -> DataSpec:
    """What the data module of a run tells. Raises ValueError for one that does not train the transformer."""
    spec = getattr(getattr(trainer, "datamodule", None), "spec", None)
    if not isinstance(spec, DataSpec):
        raise ValueError("the transformer trains on a TokenDataModule or RawDataModule, which tell what they hold")
    return spec


def rank_of(trainer: Any) -> tuple[int, int]:
    """Rank of this process and the number of ranks; the only one of one without a trainer."""
    return (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
