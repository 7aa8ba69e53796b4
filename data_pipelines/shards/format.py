"""What a token shard holds: documents as ids, and the manifest that vouches for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, overload

import numpy as np

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"


class DamagedShard(ValueError):
    """A shard or its manifest cannot be trusted; the message names the file and the reason."""


@dataclass(frozen=True, kw_only=True)
class TokenSegment:
    """Ids of one segment; those of an image are all that stands between boi and eoi (`TokenSpace.image_body`).

    Where the shards hold them, `latents` (R, K, C) are those of the same image in an autoencoder, and `pixels` (H, W,
    3) uint8 what a ViT sees of it.
    """

    kind: Literal["text", "image"]
    role: str
    ids: np.ndarray
    latents: np.ndarray | None = None
    pixels: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class TokenDocument:
    """A document after tokenization."""

    key: str
    segments: tuple[TokenSegment, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)

    def count(self, kind: Literal["text", "image"]) -> int:
        """Ids of one kind."""
        return sum(len(segment.ids) for segment in self.segments if segment.kind == kind)


class DocumentSequence(Sequence[TokenDocument]):
    """Documents that are made when they are asked for; a subclass says how many there are and makes one."""

    def document(self, index: int) -> TokenDocument:
        """The document of an index from 0 on."""
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> TokenDocument: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenDocument]: ...
    def __getitem__(self, index: int | slice) -> TokenDocument | list[TokenDocument]:
        if isinstance(index, slice):
            return [self.document(i) for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.document(index)


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """A shard's line in the manifest."""

    name: str
    sha256: str
    documents: int
    text_tokens: int
    image_tokens: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """`manifest.json`: what the shards of a folder hold. What it does not list is not data.

    `autoencoder` says whose latents lie beside the ids: `hash`, `latent_dim`, `reduction`, `image_size`; None where
    there are none. `patches` is the policy of the pixels beside them: `patch`, `most`, `longest`; None as well.
    """

    token_space: dict[str, Any]
    fingerprint: str
    image_policy: dict[str, Any]
    source: dict[str, Any]
    shards: tuple[ShardEntry, ...]
    left_out: dict[str, int] = field(default_factory=dict)
    autoencoder: dict[str, Any] | None = None
    patches: dict[str, int] | None = None
    format_version: int = FORMAT_VERSION

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Manifest:
        """The inverse of `to_dict`. Raises DamagedShard for anything else."""
        version = values.get("format_version")
        if version != FORMAT_VERSION:
            raise DamagedShard(f"the manifest has format version {version}, this code reads {FORMAT_VERSION}")
        try:
            return cls(**{**values, "shards": tuple(ShardEntry(**entry) for entry in values["shards"])})
        except (TypeError, KeyError) as error:
            raise DamagedShard(f"not a shard manifest: {error}") from error
