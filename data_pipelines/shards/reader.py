"""Reads token shards: nothing is trusted that the manifest does not vouch for.

A shard is verified once, when it is opened: its hash, its tar, every document's description and every id. After that
its documents are views into the mapped file, so that shards larger than memory can be trained on in any order, and
files are opened when they are used and closed again (mapped.py).
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import tarfile
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.shards.checks import check_documents
from data_pipelines.shards.format import (
    MANIFEST_FILE,
    DamagedShard,
    DocumentSequence,
    Manifest,
    ShardEntry,
    TokenDocument,
    TokenSegment,
)
from data_pipelines.shards.mapped import Data, MappedFile
from data_pipelines.shards.media import MediaCodec, codecs
from data_pipelines.shards.tar import members
from tokenizers_vq.token_space import TokenSpace

MAGIC = 8
"""Bytes of a .npy file before the length of its header."""


class Array(NamedTuple):
    """Where the numbers of a .npy member lie."""

    start: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def view(self, data: Data) -> np.ndarray:
        """The numbers, still in the file."""
        return np.frombuffer(data, self.dtype, math.prod(self.shape), self.start).reshape(self.shape)


class Location(NamedTuple):
    """Where a document lies in its shard: description in JSON, ids, and the media of its images by member."""

    key: str
    json_start: int
    json_end: int
    ids: Array
    media: dict[str, Array]


def open_manifest(folder: Path) -> Manifest:
    """The manifest of a folder of shards. Raises DamagedShard where there is none or it does not match itself."""
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise DamagedShard(f"{folder} holds no {MANIFEST_FILE}: it is not a folder of token shards, or not a whole one")
    try:
        manifest = Manifest.from_dict(json.loads(path.read_text()))
        space = manifest.space
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, ValueError) as error:
        raise DamagedShard(f"{path}: {error}") from error
    if space.fingerprint != manifest.fingerprint:
        raise DamagedShard(f"{path}: the fingerprint does not match the token space")
    return manifest


class Shard(DocumentSequence):
    """The documents of one verified shard, in order; ids are views into the file.

    Raises DamagedShard for anything that is not as the manifest says.
    """

    def __init__(self, folder: Path, entry: ShardEntry, manifest: Manifest) -> None:
        path = folder / entry.name
        if Path(entry.name).name != entry.name or not path.is_file():
            raise DamagedShard(f"{path} is in the manifest but not in the folder")
        self.file, self.codecs = MappedFile(path), codecs(manifest)
        if hashlib.sha256(self.file.data).hexdigest() != entry.sha256:
            raise DamagedShard(f"{path}: its SHA-256 is not the manifest's; the file was damaged or changed")
        try:
            self.locations = list(_locations(self.file.data, self.codecs))
            check_documents(list(self), manifest.space)
        except (tarfile.TarError, ValueError, KeyError, TypeError, EOFError, RecursionError) as error:
            raise DamagedShard(f"{path}: {error}") from error
        if len(self) != entry.documents:
            raise DamagedShard(f"{path} holds {len(self)} documents, the manifest says {entry.documents}")

    def __len__(self) -> int:
        return len(self.locations)

    @property
    def keys(self) -> list[str]:
        """The documents' keys, in order."""
        return [location.key for location in self.locations]

    def document(self, index: int) -> TokenDocument:
        """One document, its ids still in the file."""
        location = self.locations[index]
        data = self.file.data
        key, ids = location.key, location.ids.view(data)
        rest = {name: array.view(data) for name, array in location.media.items()}
        described: dict[str, Any] = json.loads(data[location.json_start : location.json_end])
        segments, end = [], 0
        for s in described["segments"]:
            media: dict[str, np.ndarray] = {}
            for member in [member for member in self.codecs if member in s]:
                grid = _grid(member, s[member], key)
                rows, rest[member] = _taken(member, rest.get(member, NOTHING), grid, key)
                codec = self.codecs[member]
                media[codec.name] = codec.image(rows, grid)
            start, length = s["start"], s["length"]
            if start != end or length < 0:
                raise ValueError(f"{key!r}: its segments do not follow one another")
            end += length
            segments.append(TokenSegment(kind=s["kind"], role=s["role"], ids=ids[start:end], media=media))
        if end != len(ids) or any(map(len, rest.values())):
            raise ValueError(f"{key!r}: its segments do not cover its {' and '.join(['ids', *location.media])}")
        return TokenDocument(key=key, segments=tuple(segments), meta=dict(described["meta"]))


NOTHING = np.zeros((0, 1))


def _grid(name: str, grid: Any, key: str) -> tuple[int, int]:
    """The two numbers that the segment of an image states of its media."""
    if not (isinstance(grid, list) and len(grid) == 2 and all(isinstance(count, int) and count > 0 for count in grid)):
        raise ValueError(f"{key!r}: the {name} of an image are said to be {grid}, not rows and columns")
    return grid[0], grid[1]


def _taken(name: str, values: np.ndarray, grid: tuple[int, int], key: str) -> tuple[np.ndarray, np.ndarray]:
    """The rows (R * K, C) of the next image, and what is left of them."""
    count = grid[0] * grid[1]
    if count > len(values):
        raise ValueError(f"{key!r}: an image of {grid[0]}x{grid[1]} {name}, but only {len(values)} are left")
    return values[:count], values[count:]


def read_shard(folder: Path, entry: ShardEntry, manifest: Manifest) -> Iterator[TokenDocument]:
    """The documents of one shard, in order. Raises DamagedShard for anything that is not as the manifest says."""
    yield from Shard(folder, entry, manifest)


def read_all(folder: Path) -> tuple[TokenSpace, list[TokenDocument]]:
    """Token space and every document of a folder."""
    manifest = open_manifest(folder)
    documents = [document for entry in manifest.shards for document in read_shard(folder, entry, manifest)]
    return manifest.space, documents


def _locations(data: Data, known: Mapping[str, MediaCodec]) -> Iterator[Location]:
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for name, start, size in members(data):
        key, _, ending = name.partition(".")
        if ending not in ("ids.npy", "json", *(f"{member}.npy" for member in known)):
            raise ValueError(f"unexpected member {name!r}")
        parts = found.setdefault(key, {})
        if ending in parts:
            raise ValueError(f"{name!r} occurs twice")
        parts[ending] = (start, start + size)
    for key, parts in found.items():
        if not {"ids.npy", "json"} <= set(parts):
            raise ValueError(f"{key!r} lacks its ids or its json")
        ids = _npy(key, "ids", data, *parts["ids.npy"])
        if len(ids.shape) != 1 or ids.dtype.kind not in "iu":
            dimensions = len(ids.shape)
            raise ValueError(f"{key!r} holds {ids.dtype} in {dimensions} dimensions; ids are whole numbers in one")
        media: dict[str, Array] = {}
        for member in [member for member in known if f"{member}.npy" in parts]:
            media[member] = _npy(key, member, data, *parts[f"{member}.npy"])
            known[member].check(key, media[member].view(data))
        yield Location(key, *parts["json"], ids, media)


def _npy(key: str, what: str, data: Data, start: int, end: int) -> Array:
    """The array of a .npy member."""
    version = np.lib.format.read_magic(io.BytesIO(data[start : start + MAGIC]))
    if version != (1, 0):
        raise ValueError(f"{key!r}: its {what} are in .npy version {version[0]}.{version[1]}; 1.0 is read")
    header = data[start + MAGIC : start + MAGIC + 2 + int.from_bytes(data[start + MAGIC : start + MAGIC + 2], "little")]
    shape, by_columns, dtype = _array_header(bytes(header))
    if by_columns:
        raise ValueError(
            f"{key!r}: its {what}.npy lies column by column (fortran_order): tokenize again, or save it row by row"
        )
    first = start + MAGIC + len(header)
    if dtype.hasobject or first + math.prod(shape) * dtype.itemsize != end:
        raise ValueError(f"{key!r}: its {what}.npy does not hold the array of {math.prod(shape)} {what} that it states")
    return Array(first, dtype, shape)


@lru_cache(maxsize=10_000)
def _array_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    return np.lib.format.read_array_header_1_0(io.BytesIO(header))
