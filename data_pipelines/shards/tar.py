"""Where the members of a plain tar lie: nothing is copied, so a mapped file is read only where it is used."""

from __future__ import annotations

import io
import mmap
import tarfile
from collections.abc import Iterator
from typing import NamedTuple

TAR_BLOCK = 512
REGULAR = (ord("0"), 0)
END = b"\0" * TAR_BLOCK


class Member(NamedTuple):
    """A regular file of a tar: its bytes are `data[start : start + size]`."""

    name: str
    start: int
    size: int


def members(data: bytes | mmap.mmap) -> Iterator[Member]:
    """The members of an uncompressed tar. Raises tarfile.TarError for one that is damaged, cut off, or no file.

    The headers that ShardWriter and webdataset write are read directly, several times faster than by `tarfile`, which
    takes over at the first header of another kind (long names, PAX records).
    """
    view, position = memoryview(data).cast("B"), 0
    while position + TAR_BLOCK <= len(view):
        header = bytes(view[position : position + TAR_BLOCK])
        if header == END:
            return
        if header[156] not in REGULAR or header[124] & 0x80:
            yield from _other_kinds(view[position:], position)
            return
        member = _plain(header, position + TAR_BLOCK)
        if member.start + member.size > len(view):
            raise tarfile.ReadError(f"it is cut off inside {member.name!r}")
        yield member
        position = member.start + -(-member.size // TAR_BLOCK) * TAR_BLOCK
    if position != len(view):
        raise tarfile.ReadError("it is cut off")


def _plain(header: bytes, start: int) -> Member:
    stated = header[148:156].strip(b" \0")
    try:
        if int(stated, 8) != sum(header) - sum(header[148:156]) + 8 * ord(" "):
            raise tarfile.ReadError("a member's header is damaged")
        name = header[:100].split(b"\0", 1)[0]
        if header[257:263] == b"ustar\0" and header[345]:
            name = header[345:500].split(b"\0", 1)[0] + b"/" + name
        return Member(name.decode("utf-8"), start, int(header[124:136].strip(b" \0") or b"0", 8))
    except ValueError as error:
        raise tarfile.ReadError("a member's header is damaged") from error


def _other_kinds(view: memoryview, offset: int) -> Iterator[Member]:
    with tarfile.open(fileobj=io.BytesIO(view), mode="r:") as tar:
        for member in tar:
            if not member.isfile():
                raise tarfile.ReadError(f"{member.name!r} is not a file")
            if member.offset_data + member.size > len(view):
                raise tarfile.ReadError(f"it is cut off inside {member.name!r}")
            yield Member(member.name, offset + member.offset_data, member.size)
