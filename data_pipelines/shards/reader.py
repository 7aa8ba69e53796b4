"""Reads token shards: nothing is trusted that the manifest does not vouch for.

A shard is verified once, when it is opened: its hash, its tar, every document's description and every id. After that
its documents are views into the mapped file, so that shards larger than memory can be trained on in any order.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
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


class Array(NamedTuple):
    """Where the numbers of a .npy member lie."""

    start: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def view(self, data: Data) -> np.ndarray:
        """The numbers, still in the file."""
        return np.frombuffer(data, self.dtype, math.prod(self.shape), self.start).reshape(self.shape)


class Place(NamedTuple):
    """Where a document lies in its shard: description in JSON, ids, and latents and pixels where it has them."""

    key: str
    json_start: int
    json_end: int
    ids: Array
    latents: Array | None
    pixels: Array | None


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
        ids = place.ids.view(self.data)
        left = {
            name: np.zeros((0, 0)) if array is None else array.view(self.data)
            for name, array in (("latents", place.latents), ("pixels", place.pixels))
        }
        described: dict[str, Any] = json.loads(self.data[place.json_start : place.json_end])
        segments, end = [], 0
        for s in described["segments"]:
            own: dict[str, np.ndarray] = {}
            for name in [name for name in left if name in s]:
                own[name], left[name] = _taken(name, left[name], s[name], place.key)
            start, length = s["start"], s["length"]
            if start != end or length < 0:
                raise ValueError(f"{place.key!r}: its segments do not follow one another")
            end += length
            segments.append(TokenSegment(kind=s["kind"], role=s["role"], ids=ids[start:end], **own))
        if end != len(ids) or any(map(len, left.values())):
            raise ValueError(f"{place.key!r}: its segments do not cover its ids, latents and pixels")
        return TokenDocument(key=place.key, segments=tuple(segments), meta=dict(described["meta"]))


def _taken(name: str, values: np.ndarray, grid: Any, key: str) -> tuple[np.ndarray, np.ndarray]:
    """The latents or pixels (R, K, C) of the next image, and (N, C) what is left of them."""
    if not (isinstance(grid, list) and len(grid) == 2 and all(isinstance(side, int) and side > 0 for side in grid)):
        raise ValueError(f"{key!r}: the {name} of an image are said to be {grid}, not rows and columns")
    rows, columns = grid
    if rows * columns > len(values):
        raise ValueError(f"{key!r}: an image of {rows}x{columns} {name}, but only {len(values)} are left")
    return values[: rows * columns].reshape(rows, columns, -1), values[rows * columns :]


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
        if ending not in ("ids.npy", "latents.npy", "pixels.npy", "json"):
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
        latents = _latents(key, data, *parts["latents.npy"]) if "latents.npy" in parts else None
        pixels = _pixels(key, data, *parts["pixels.npy"]) if "pixels.npy" in parts else None
        yield Place(key, *parts["json"], ids, latents, pixels)


def _latents(key: str, data: Data, start: int, end: int) -> Array:
    latents = _npy(key, "latents", data, start, end)
    if len(latents.shape) != 2 or latents.dtype != np.float16:
        raise ValueError(f"{key!r}: latents are float16 in two dimensions, not {latents.dtype} in {len(latents.shape)}")
    if not np.isfinite(latents.view(data)).all():
        raise ValueError(f"{key!r}: its latents are not all numbers")
    return latents


def _pixels(key: str, data: Data, start: int, end: int) -> Array:
    pixels = _npy(key, "pixels", data, start, end)
    if len(pixels.shape) != 2 or pixels.shape[1] != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"{key!r}: pixels are uint8 in rows of three, not {pixels.dtype} of shape {pixels.shape}")
    return pixels


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
    begin = start + MAGIC + len(header)
    if dtype.hasobject or begin + math.prod(shape) * dtype.itemsize != end:
        raise ValueError(f"{key!r}: its {what}.npy does not hold the array of {math.prod(shape)} {what} that it states")
    return Array(begin, dtype, shape)


@lru_cache(maxsize=10_000)
def _array_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    return np.lib.format.read_array_header_1_0(io.BytesIO(header))
