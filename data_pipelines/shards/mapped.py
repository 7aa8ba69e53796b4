"""Mapped files of which a few are open at a time, however many there are."""

from __future__ import annotations

import mmap
import os
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

from data_pipelines.shards.format import DamagedShard

Data = bytes | mmap.mmap

OPEN_FILES = 128
"""Mapped files kept open by a process; the usual limit of file handles is 1,024, and 256 on some systems."""


class ShardFile(Protocol):
    """Where the bytes of a shard come from."""

    @property
    def data(self) -> Data:
        """All bytes, kept for further calls."""
        ...

    def opened(self) -> Data:
        """The same bytes, for one pass over them."""
        ...


class FileStamp(NamedTuple):
    """What tells a file from one that was put in its place: size in bytes, time of change in ns, number of its node."""

    size: int
    changed: int
    node: int

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        """Of a file as it is now. Raises DamagedShard where it is gone."""
        try:
            found = os.stat(path)
        except OSError as error:
            raise DamagedShard(f"{path} cannot be read any more ({error.strerror})") from error
        return cls(found.st_size, found.st_mtime_ns, found.st_ino)


class MappedFile:
    """The bytes of a file, opened when they are used. What is read of them keeps its file open on its own.

    Raises DamagedShard where the file is no more the one that was opened first.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.stamp = path, FileStamp.of(path)

    @property
    def data(self) -> Data:
        """All bytes, read from the disk where they are used."""
        return _mapped(self.path, self.stamp)

    def opened(self) -> Data:
        """The same bytes, for one pass over them: their pages are given back as soon as nothing holds them."""
        return _mapped.__wrapped__(self.path, self.stamp)


@lru_cache(maxsize=OPEN_FILES)
def _mapped(path: Path, stamp: FileStamp) -> Data:
    if FileStamp.of(path) != stamp:
        raise DamagedShard(f"{path} was changed after it had been verified: start again")
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if stamp.size else b""
    except OSError as error:
        raise DamagedShard(f"{path} cannot be opened ({error.strerror})") from error
