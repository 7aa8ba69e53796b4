"""The contract that every source keeps, and the hash that says which data it read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from data_pipelines.documents import Document
from data_pipelines.failures import FailureLog


class Source(Protocol):
    """Data of one format and one split, read as documents."""

    notes: dict[str, int]
    """Counts that a user should see beside the data, by what they count."""
    failures: FailureLog
    """Counts the samples that cannot be used."""

    def documents(self) -> Iterator[Document]:
        """Every usable document, in the same order each time. Raises TooMuchDamage past the failure limit."""
        ...

    def __len__(self) -> int:
        """How many documents there are if none is damaged."""
        ...

    def fingerprint(self) -> str:
        """SHA-256, in hex, over the data that this split is read from."""
        ...


def fingerprint_files(root: Path, *, whole: Iterable[Path], listed: Iterable[Path]) -> str:
    """SHA-256 over names, sizes and bytes of the `whole` files, and over names and sizes of the `listed` ones.

    Names are relative to `root`, so that a moved folder keeps its fingerprint.
    """
    digest = hashlib.sha256()
    for path in sorted(whole):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\n".encode("utf-8", "surrogateescape"))
        digest.update(content)
    for path in sorted(listed):
        line = f"{path.relative_to(root).as_posix()}\0{path.stat().st_size}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
