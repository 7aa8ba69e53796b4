"""What a token shard holds: documents as ids, and the manifest that vouches for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from data_pipelines.documents import WithMeta
from data_pipelines.old_names import upgrade_manifest
from tokenizers_vq.field_types import from_plain
from tokenizers_vq.media import MediaSpec
from tokenizers_vq.token_space import TokenSpace

FORMAT_VERSION = 2
"""1 had `autoencoder`, `patches` and `skipped` in the manifest and stored whole images for a ViT; it is still read."""
READABLE_VERSIONS = (1, 2)
MANIFEST_FILE = "manifest.json"
PARTS_FOLDER, RECIPE_FILE = "parts", "recipe.json"
"""Of a folder whose manifest is not written yet."""


def has_parts(folder: Path) -> bool:
    """Whether a folder holds what an interrupted job left, which another call resumes."""
    return (folder / PARTS_FOLDER / RECIPE_FILE).is_file()


class DamagedShard(ValueError):
    """A shard or its manifest cannot be trusted; the message names the file and the reason."""


@dataclass(frozen=True, kw_only=True)
class TokenSegment:
    """Ids of one segment; those of an image are all that stands between boi and eoi (`TokenSpace.image_body`).

    `media` holds what else the shards know of the same image, by name: (R, K, C) in rows and columns of tokens, latents
    in float16, patches in uint8. An array may be deferred, made only when numpy asks for it.
    """

    kind: Literal["text", "image"]
    role: str
    ids: np.ndarray
    media: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TokenDocument(WithMeta):
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

    `media` says what lies beside the ids of images, by name.
    """

    token_space: dict[str, Any]
    fingerprint: str
    image_policy: dict[str, Any]
    source: dict[str, Any]
    shards: tuple[ShardEntry, ...]
    skipped: dict[str, int] = field(default_factory=dict)
    media: Mapping[str, MediaSpec] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @property
    def space(self) -> TokenSpace:
        """The token space of the ids."""
        return TokenSpace.from_dict(self.token_space)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Manifest:
        """The inverse of `to_dict`; reads version 1 too. Raises DamagedShard for anything else."""
        version = values.get("format_version")
        if version not in READABLE_VERSIONS:
            readable = " and ".join(map(str, READABLE_VERSIONS))
            raise DamagedShard(f"the manifest has format version {version}, this code reads {readable}")
        try:
            values = upgrade_manifest(values) if version == 1 else values
            media = {name: MediaSpec.from_dict(spec) for name, spec in values.get("media", {}).items()}
            shards = tuple(from_plain(ShardEntry, entry) for entry in values["shards"])
            return from_plain(cls, {**values, "shards": shards, "media": media})
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise DamagedShard(f"not a shard manifest: {error}") from error
