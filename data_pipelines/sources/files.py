"""Files of a source: which are data, which are hidden, how they are opened, and text without its byte order mark."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePath
from typing import IO, Any

from data_pipelines.documents import DamagedSample

COMPRESSED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
"""Ending of a compressed file -> what opens it."""
NOT_READ = "files beside the data that are not read"
HIDDEN_FILES = "hidden files and members that are not read"

_WIDE = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte order marks other than UTF-8's; the longer ones first, for the one of UTF-16 begins that of UTF-32."""


def is_hidden(name: PurePath) -> bool:
    """Whether a file, or a folder above it, is what systems leave behind: `._a.jpg`, `.DS_Store`, `__MACOSX/a.jpg`."""
    return any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in name.parts)


def ending(path: Path) -> str:
    """The ending that says what a file holds, in lower case: `.jsonl` of `a.JSONL` and of `a.jsonl.gz`."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in COMPRESSED else suffix


def open_file(path: Path) -> IO[bytes]:
    """The bytes of a file, unpacked where its ending says that it is compressed."""
    return COMPRESSED.get(path.suffix.lower(), open)(path, "rb")


def visible_files(folder: Path) -> Iterator[Path]:
    """Files of a folder that are not hidden, by name."""
    return (file for file in sorted(folder.iterdir()) if not is_hidden(PurePath(file.name)) and file.is_file())


def not_read(folder: Path, read: Iterable[Path], beside: frozenset[str] = frozenset()) -> dict[str, int]:
    """A note on the files of a folder that are neither read nor of an ending that is `beside`; none where all are."""
    taken = {file.name for file in read}
    files = (file for file in visible_files(folder) if file.suffix.lower() not in beside)
    rest = [file.name for file in files if file.name not in taken]
    named = f" ({', '.join(rest[:3])}{', ...' if len(rest) > 3 else ''})"
    return {NOT_READ + named: len(rest)} if rest else {}


def as_utf8(content: bytes) -> bytes:
    """UTF-8 without a byte order mark; UTF-16 and UTF-32 are recognised by theirs. Raises DamagedSample."""
    content = content.removeprefix(codecs.BOM_UTF8)
    for mark, encoding in _WIDE.items():
        if content.startswith(mark):
            try:
                return content.decode(encoding).encode("utf-8")
            except UnicodeError as error:
                raise DamagedSample(f"not {encoding.upper()}, as its byte order mark says") from error
    return content


def decoded(content: bytes, what: str = "") -> str:
    """Text of a file, without its byte order mark. Raises DamagedSample where it is not UTF-8; `what` begins that."""
    try:
        return as_utf8(content).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DamagedSample(f"{what} not UTF-8".strip()) from error
