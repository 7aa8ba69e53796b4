"""A bounded cache of remote shards, shared by all processes of a machine.

A shard is fetched by one process, under a name that says it is partial, and renamed once its hash is right. It is
evicted when space is needed, the least recently used first, and never while a process reads it: a mapping holds a
shared lock on the file, which ends with it, however the process ends.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from data_pipelines.shards.fetching import exclusive, fetch_file, file_size
from data_pipelines.shards.format import DamagedShard
from data_pipelines.shards.mapped import Data
from data_pipelines.shards.writer import PARTIAL_SUFFIX

LOCK = ".lock"
LOCKS = "locks"
WAIT = 120.0
"""Seconds for which a process waits for others to close shards where all of the cache is being read."""

ATTEMPTS = 5
"""How often a shard may be evicted or damaged by others before it is opened."""


class _File(NamedTuple):
    used: int
    path: Path
    size: int


@dataclass(frozen=True)
class ShardCache:
    """The folder of all addresses, and how many bytes its shards may have together."""

    folder: Path
    max_bytes: int

    @classmethod
    def of_gib(cls, folder: Path, gib: float) -> ShardCache:
        """With a size in GiB, as a config states it."""
        return cls(folder.expanduser(), int(gib * 2**30))

    @property
    def stated(self) -> str:
        """Its size, for messages."""
        return gib_text(self.max_bytes)

    def reserve(self, partial: Path, size: int, seconds: float) -> bool:
        """Make the file of a shard of `size` bytes once there is space for it, and evict others for that.

        False where others are read for longer than `seconds`. Raises ValueError for a shard larger than the cache.
        """
        if size > self.max_bytes:
            name = partial.name.rsplit(".", 2)[0]
            raise ValueError(f"{name} has {gib_text(size)}, and the cache {self.stated}: raise data.max_cache_gib")
        deadline = time.monotonic() + seconds
        while True:
            with exclusive(self.folder / LOCK):
                if self._make_space(size):
                    partial.touch()
                    return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)

    def used_bytes(self) -> int:
        """Of all shards, those that are being fetched at their whole size."""
        return sum(file.size for file in self._files())

    def _make_space(self, size: int) -> bool:
        files = sorted(self._files())
        used = sum(file.size for file in files)
        for file in files:
            if used + size <= self.max_bytes:
                break
            if _evicted(file.path):
                used -= file.size
        return used + size <= self.max_bytes

    def _files(self) -> Iterator[_File]:
        for path in self.folder.glob("*/*.tar*"):
            try:
                found = path.stat()
            except FileNotFoundError:  # renamed since, by the process that fetched it
                continue
            yield _File(found.st_atime_ns, path, max(found.st_size, _stated_size(path)))


class CachedFile:
    """The bytes of a remote shard, fetched when they are read, and again where they were evicted.

    Raises ValueError where it cannot be fetched, DamagedShard where it is not what the manifest says.
    """

    def __init__(self, cache: ShardCache, address: str, path: Path, sha256: str) -> None:
        self.cache, self.address, self.path, self.sha256 = cache, address, path, sha256
        self.size = 0
        """In bytes, once it is known."""
        self._verified: tuple[int, int, int] | None = None

    @property
    def data(self) -> Data:
        """All bytes, mapped anew by each call, so that no file is held between two reads."""
        return self.opened()

    def opened(self) -> Data:
        """The same bytes, for one pass over them: their file may be evicted as soon as nothing holds them."""
        for _ in range(ATTEMPTS):
            data = self._mapped()
            if data is None:
                self._fetch(WAIT)
            elif self._verified is not None:
                return data
            else:
                self.path.unlink(missing_ok=True)  # damaged on this disk
        raise DamagedShard(f"{self.path} is changed by another process again and again")

    def prefetch(self) -> None:
        """Fetch the shard in the background, where there is space that nothing is read from."""
        _prefetching().put(self)

    def fetch_ahead(self) -> None:
        """Fetch the shard if there is space. An error is left to the process that reads it."""
        try:
            self._fetch(0)
        except ValueError:
            return

    def _fetch(self, seconds: float) -> None:
        with exclusive(_lock_of(self.path)):
            if self.path.exists():
                return
            size = file_size(self.address)
            for abandoned in self.path.parent.glob(f"{self.path.name}.*{PARTIAL_SUFFIX}"):
                abandoned.unlink()
            partial = self.path.with_name(f"{self.path.name}.{size}{PARTIAL_SUFFIX}")
            if not self.cache.reserve(partial, size, seconds):
                if not seconds:
                    return
                full = f"the cache of {self.cache.stated} is full of shards that are being read by other processes"
                raise ValueError(f"{full}: raise data.max_cache_gib, or lower data.stream.shards_together")
            try:
                fetch_file(self.address, partial, self.sha256)
                os.replace(partial, self.path)
            finally:
                partial.unlink(missing_ok=True)

    def _mapped(self) -> Data | None:
        """The file, locked for as long as it is mapped; None where it is not there."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return None
        with file:
            fcntl.flock(file, fcntl.LOCK_SH)  # the mapping keeps the open file, and with it the lock
            found = os.fstat(file.fileno())
            if not found.st_nlink:  # evicted before it was locked
                return None
            os.utime(file.fileno(), ns=(time.time_ns(), found.st_mtime_ns))
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if found.st_size else b""
        self.size = found.st_size
        stamp = (found.st_ino, found.st_size, found.st_mtime_ns)
        if self._verified != stamp:
            self._verified = stamp if hashlib.sha256(data).hexdigest() == self.sha256 else None
        return data


def gib_text(size: int) -> str:
    """Bytes as a message states them."""
    return f"{size / 2**30:.3g} GiB"


@lru_cache(maxsize=1)
def _prefetching() -> queue.Queue[CachedFile]:
    """Shards that a thread of this process fetches one after the other."""
    waiting: queue.Queue[CachedFile] = queue.Queue()

    def work() -> None:
        while True:
            waiting.get().fetch_ahead()

    threading.Thread(target=work, name="shards", daemon=True).start()
    return waiting


os.register_at_fork(after_in_child=_prefetching.cache_clear)


def _lock_of(path: Path) -> Path:
    return path.parent / LOCKS / path.name


def _stated_size(path: Path) -> int:
    """Of a file that is being fetched: `000001.tar.SIZE.partial`."""
    *_, size, ending = path.name.rsplit(".", 2)
    return int(size) if f".{ending}" == PARTIAL_SUFFIX and size.isdigit() else 0


def _evicted(path: Path) -> bool:
    """Remove a file unless it is being read or fetched."""
    partial = path.name.endswith(PARTIAL_SUFFIX)
    try:
        held = (_lock_of(path.with_name(path.name.rsplit(".", 2)[0])) if partial else path).open("rb")
        with held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return not path.exists()
    return True
