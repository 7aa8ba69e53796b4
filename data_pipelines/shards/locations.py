"""Where the documents of a shard lie in its file: a few numbers for each, so that millions of them fit a process."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.shards.mapped import Data
from data_pipelines.shards.media import MediaCodec
from data_pipelines.shards.tar import members

MAGIC = 8
"""Bytes of a .npy file before the length of its header."""
IDS = "ids"


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


class Locations:
    """The locations of a shard's documents, in order, as columns of numbers: 40 bytes a document and its key.

    A key is kept as UTF-8, and the kinds of arrays, which are few, once.
    """

    def __init__(self, locations: Iterable[Location]) -> None:
        keys: list[bytes] = []
        spans: list[tuple[int, int]] = []
        starts: dict[str, list[int]] = {}
        kinds: dict[str, list[int]] = {}
        known: dict[tuple[Any, ...], int] = {}
        for number, location in enumerate(locations):
            keys.append(location.key.encode("utf-8"))
            spans.append((location.json_start, location.json_end))
            for name, array in ((IDS, location.ids), *location.media.items()):
                for columns, absent in ((starts, 0), (kinds, -1)):
                    columns.setdefault(name, []).extend([absent] * (number - len(columns[name])))
                starts[name].append(array.start)
                kinds[name].append(known.setdefault((array.dtype, array.shape), len(known)))
        self._keys, self._key_ends = b"".join(keys), _column(accumulate(map(len, keys)))
        self._spans = np.array(spans, dtype=np.int64).reshape(-1, 2)
        self._starts = {name: _column(column) for name, column in starts.items()}
        self._kinds = {name: _column(column, np.int32) for name, column in kinds.items()}
        self._arrays = list(known)

    def __len__(self) -> int:
        return len(self._spans)

    def key(self, index: int) -> str:
        """The key of a document."""
        start = int(self._key_ends[index - 1]) if index else 0
        return self._keys[start : int(self._key_ends[index])].decode("utf-8")

    def __getitem__(self, index: int) -> Location:
        found = {name: array for name in self._starts if (array := self._array(name, index)) is not None}
        start, end = map(int, self._spans[index])
        return Location(self.key(index), start, end, found.pop(IDS), found)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """All of it as arrays by name, without objects."""
        kinds = [[array.str, list(shape)] for array, shape in self._arrays]
        found = {"keys": np.frombuffer(self._keys, np.uint8), "key_ends": self._key_ends, "spans": self._spans}
        found |= {f"starts.{name}": column for name, column in self._starts.items()}
        found |= {f"kinds.{name}": column for name, column in self._kinds.items()}
        return {**found, "arrays": np.frombuffer(json.dumps(kinds).encode(), np.uint8)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Locations:
        """The inverse of `to_arrays`. Raises KeyError or ValueError for other arrays."""
        made = cls(())
        made._keys, made._key_ends, made._spans = arrays["keys"].tobytes(), arrays["key_ends"], arrays["spans"]
        columns = {name: column for name, column in arrays.items() if "." in name}
        made._starts = {name.partition(".")[2]: c for name, c in columns.items() if name.startswith("starts.")}
        made._kinds = {name.partition(".")[2]: c for name, c in columns.items() if name.startswith("kinds.")}
        kinds = json.loads(arrays["arrays"].tobytes())
        made._arrays = [(np.dtype(dtype), tuple(shape)) for dtype, shape in kinds]
        return made

    def _array(self, name: str, index: int) -> Array | None:
        kinds = self._kinds[name]
        if index >= len(kinds) or kinds[index] < 0:
            return None
        return Array(int(self._starts[name][index]), *self._arrays[kinds[index]])


def _column(numbers: Iterable[int], dtype: Any = np.int64) -> np.ndarray:
    return np.fromiter(numbers, dtype)


def find_locations(data: Data, known: Mapping[str, MediaCodec]) -> Iterator[Location]:
    """The location of every document of a tar. Raises ValueError or tarfile.TarError for anything that is not one."""
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
