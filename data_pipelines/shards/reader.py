"""Reads token shards: nothing is trusted that the manifest does not vouch for.

A shard is verified once, when it is opened: its hash, its tar, every document's description and every id. After that
its documents are views into the mapped file, so that shards larger than memory can be trained on in any order.
"""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import tarfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.shards.checks import check_ids
from data_pipelines.shards.format import (
    MANIFEST_FILE,
    DamagedShard,
    DocumentSequence,
    Manifest,
    ShardEntry,
    TokenDocument,
    TokenSegment,
)
from data_pipelines.shards.tar import members
from tokenizers_vq.token_space import TokenSpace

Data = bytes | mmap.mmap
MAGIC = 8
"""Bytes of a .npy file before the length of its header."""


class Place(NamedTuple):
    """Where a document lies in its shard: its description in JSON, and its ids."""

    key: str
    json_start: int
    json_end: int
    ids_start: int
    dtype: np.dtype[Any]
    num_ids: int


def open_manifest(folder: Path) -> Manifest:
    """The manifest of a folder of shards. Raises DamagedShard where there is none or it does not match itself."""
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise DamagedShard(f"{folder} holds no {MANIFEST_FILE}: it is not a folder of token shards, or not a whole one")
    try:
        manifest = Manifest.from_dict(json.loads(path.read_text()))
        space = TokenSpace.from_dict(manifest.token_space)
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, ValueError) as error:
        raise DamagedShard(f"{path}: {error}") from error
    if space.fingerprint != manifest.fingerprint:
        raise DamagedShard(f"{path}: the fingerprint does not match the token space")
    return manifest


class Shard(DocumentSequence):
    """The documents of one verified shard, in order; ids are views into the file.

    Raises DamagedShard for anything that is not as the manifest says.
    """

    def __init__(self, folder: Path, entry: ShardEntry, space: TokenSpace) -> None:
        path = folder / entry.name
        if Path(entry.name).name != entry.name or not path.is_file():
            raise DamagedShard(f"{path} is in the manifest but not in the folder")
        self.data = _mapped(path)
        if hashlib.sha256(self.data).hexdigest() != entry.sha256:
            raise DamagedShard(f"{path}: its SHA-256 is not the manifest's; the file was damaged or changed")
        try:
            self.places = list(_places(self.data))
            check_ids(list(self), space)
        except (tarfile.TarError, ValueError, KeyError, TypeError, EOFError, RecursionError) as error:
            raise DamagedShard(f"{path}: {error}") from error
        if len(self) != entry.documents:
            raise DamagedShard(f"{path} holds {len(self)} documents, the manifest says {entry.documents}")

    def __len__(self) -> int:
        return len(self.places)

    @property
    def keys(self) -> list[str]:
        """The documents' keys, in order."""
        return [place.key for place in self.places]

    def document(self, index: int) -> TokenDocument:
        """One document, its ids still in the file."""
        place = self.places[index]
        ids = np.frombuffer(self.data, place.dtype, place.num_ids, place.ids_start)
        described: dict[str, Any] = json.loads(self.data[place.json_start : place.json_end])
        segments, end = [], 0
        for s in described["segments"]:
            start, length = s["start"], s["length"]
            if start != end or length < 0:
                raise ValueError(f"{place.key!r}: its segments do not follow one another")
            end += length
            segments.append(TokenSegment(kind=s["kind"], role=s["role"], ids=ids[start:end]))
        if end != len(ids):
            raise ValueError(f"{place.key!r}: its segments do not cover its ids")
        return TokenDocument(key=place.key, segments=tuple(segments), meta=dict(described["meta"]))


def read_shard(folder: Path, entry: ShardEntry, space: TokenSpace) -> Iterator[TokenDocument]:
    """The documents of one shard, in order. Raises DamagedShard for anything that is not as the manifest says."""
    yield from Shard(folder, entry, space)


def read_all(folder: Path) -> tuple[TokenSpace, list[TokenDocument]]:
    """Token space and every document of a folder."""
    manifest = open_manifest(folder)
    space = TokenSpace.from_dict(manifest.token_space)
    return space, [document for entry in manifest.shards for document in read_shard(folder, entry, space)]


def _mapped(path: Path) -> Data:
    """The bytes of a file, read from disk where they are used."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""


def _places(data: Data) -> Iterator[Place]:
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for name, start, size in members(data):
        key, _, ending = name.partition(".")
        if ending not in ("ids.npy", "json"):
            raise ValueError(f"unexpected member {name!r}")
        parts = found.setdefault(key, {})
        if ending in parts:
            raise ValueError(f"{name!r} occurs twice")
        parts[ending] = (start, start + size)
    for key, parts in found.items():
        if set(parts) != {"ids.npy", "json"}:
            raise ValueError(f"{key!r} lacks its ids or its json")
        dtype, num_ids, ids_start = _npy(key, data, *parts["ids.npy"])
        yield Place(key, *parts["json"], ids_start, dtype, num_ids)


def _npy(key: str, data: Data, start: int, end: int) -> tuple[np.dtype[Any], int, int]:
    """Type, number and place of the ids of a .npy member."""
    version = np.lib.format.read_magic(io.BytesIO(data[start : start + MAGIC]))
    if version != (1, 0):
        raise ValueError(f"{key!r}: its ids are in .npy version {version[0]}.{version[1]}; 1.0 is read")
    header = data[start + MAGIC : start + MAGIC + 2 + int.from_bytes(data[start + MAGIC : start + MAGIC + 2], "little")]
    shape, dtype = _array_header(bytes(header))
    if len(shape) != 1 or dtype.kind not in "iu":
        raise ValueError(f"{key!r} holds {dtype} in {len(shape)} dimensions; ids are whole numbers in one")
    ids_start = start + MAGIC + len(header)
    if ids_start + shape[0] * dtype.itemsize != end:
        raise ValueError(f"{key!r}: its ids.npy does not hold the array of {shape[0]} ids that it states")
    return dtype, shape[0], ids_start


@lru_cache(maxsize=10_000)
def _array_header(header: bytes) -> tuple[tuple[int, ...], np.dtype[Any]]:
    shape, _, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(header))
    return shape, dtype
