"""Copies files from any address that fsspec knows, in pieces; an interrupted transfer starts again after a pause."""

from __future__ import annotations

import fcntl
import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from fsspec.core import url_to_fs

from data_pipelines.shards.format import DamagedShard

_T = TypeVar("_T")

PAUSES = (0.5, 1.0, 2.0, 4.0)
"""Seconds before each further attempt."""

FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError, ImportError)
"""Errors that another attempt would meet again."""

PIECE = 1 << 20
"""Bytes that are hashed at a time."""


def read_small(address: str) -> bytes:
    """All bytes of a small file. Raises ValueError, with the address, where it cannot be read."""
    return _attempted(address, lambda: _cat(address))


def file_size(address: str) -> int:
    """Bytes of a file. Raises ValueError where it cannot be read, or where its server does not state them."""

    def size() -> int | None:
        files, path = url_to_fs(address)
        return files.size(path)

    found = _attempted(address, size)
    if found is None:
        raise ValueError(f"{address} cannot be read (its server does not state its size, which a bounded cache needs)")
    return int(found)


def fetch_file(address: str, target: Path, sha256: str | None = None) -> None:
    """Copy a file to `target`, piece by piece, and compare its hash.

    Raises ValueError, with the address, for one that cannot be read, DamagedShard for one of another hash. What is in
    `target` then is not the file.
    """

    def fetch() -> None:
        files, path = url_to_fs(address)
        files.get_file(path, str(target))
        if sha256 is not None and file_hash(target) != sha256:
            raise _NotWhole

    try:
        _attempted(address, fetch)
    except _NotWhole:
        reason = "its SHA-256 is not the manifest's; it did not arrive whole"
        raise DamagedShard(f"{address}: {reason}") from None


def fetch_if_there(address: str, target: Path) -> bool:
    """As `fetch_file`; whether the file is there."""
    try:
        fetch_file(address, target)
    except ValueError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return False
        raise
    return True


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a file that stands for something that one process of a machine, and one of its threads, does at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class _NotWhole(Exception):
    """All bytes are there, and they are not those of the manifest."""


def _cat(address: str) -> bytes:
    files, path = url_to_fs(address)
    return bytes(files.cat_file(path))  # pyright: ignore[reportArgumentType]


def _attempted(address: str, act: Callable[[], _T]) -> _T:
    """Act until it succeeds, with PAUSES between. Raises ValueError with the address, from the last error."""
    for pause in (*PAUSES, None):
        try:
            return act()
        except Exception as error:  # every file system raises errors of its own
            if pause is None or isinstance(error, FINAL):
                if isinstance(error, _NotWhole):
                    raise
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                raise ValueError(f"{address} cannot be read ({reason})") from error
        time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")
