"""Reads token shards: nothing is trusted that the manifest does not vouch for.

A shard is verified once, when it is opened: its hash, its tar, every document's description and every id. After that
its documents are views into the mapped file, so that shards larger than memory can be trained on in any order, and
files are opened when they are used and closed again (mapped.py).
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
from data_pipelines.shards.locations import Locations, find_locations
from data_pipelines.shards.mapped import Data, MappedFile, ShardFile
from data_pipelines.shards.media import codecs
from tokenizers_vq.token_space import TokenSpace


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

    file: where the bytes come from, if not from the folder. locations: of a shard that this machine has verified
    before. Raises DamagedShard for anything that is not as the manifest says.
    """

    def __init__(
        self,
        folder: Path,
        entry: ShardEntry,
        manifest: Manifest,
        file: ShardFile | None = None,
        locations: Locations | None = None,
    ) -> None:
        path = folder / entry.name
        if file is None and (Path(entry.name).name != entry.name or not path.is_file()):
            raise DamagedShard(f"{path} is in the manifest but not in the folder")
        self.file, self.codecs = file or MappedFile(path), codecs(manifest)
        self.locations = locations or self._verified(path, entry, manifest)
        if len(self) != entry.documents:
            raise DamagedShard(f"{path} holds {len(self)} documents, the manifest says {entry.documents}")

    def _verified(self, path: Path, entry: ShardEntry, manifest: Manifest) -> Locations:
        data = self.file.opened()
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise DamagedShard(f"{path}: its SHA-256 is not the manifest's; the file was damaged or changed")
        try:
            self.locations = Locations(find_locations(data, self.codecs))
            check_documents([self._document(index, data) for index in range(len(self))], manifest.space)
        except (tarfile.TarError, ValueError, KeyError, TypeError, EOFError, RecursionError) as error:
            raise DamagedShard(f"{path}: {error}") from error
        return self.locations

    def __len__(self) -> int:
        return len(self.locations)

    @property
    def keys(self) -> list[str]:
        """The documents' keys, in order."""
        return [self.locations.key(index) for index in range(len(self))]

    def document(self, index: int) -> TokenDocument:
        """One document, its ids still in the file."""
        return self._document(index, self.file.data)

    def _document(self, index: int, data: Data) -> TokenDocument:
        location = self.locations[index]
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
