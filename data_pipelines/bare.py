"""Containers of pictures whose metadata keep a decoder from their pixels: the same picture without the metadata."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
"""Chunks without which there are no pixels; their checksums have to be right."""
COLOUR_CHUNKS = (b"tRNS", b"iCCP", b"sRGB")
"""Chunks that change what a viewer shows, kept where their checksums are right."""
JPEG_START = b"\xff\xd8"
JPEG_METADATA = (0xE1, 0xE2, 0xE3, 0xEC, 0xED, 0xFE)
"""Segments of EXIF, XMP, ICC profiles, Meta, Ducky, Photoshop, and comments; JFIF and Adobe's colour transform stay."""


class PngHeader(NamedTuple):
    """Bits a sample, and the kind of colour (PNG 11.2.2)."""

    depth: int
    colour: int


def png_header(content: bytes) -> PngHeader | None:
    """Of a PNG; None for anything else."""
    if content[:8] != SIGNATURE or content[12:16] != b"IHDR" or len(content) < 26:
        return None
    return PngHeader(content[24], content[25])


def without_metadata(content: bytes) -> bytes | None:
    """A PNG or JPEG with what its pixels need and nothing else; None for other formats."""
    if content[:8] == SIGNATURE:
        return SIGNATURE + b"".join(chunk for name, chunk, sound in _chunks(content) if _kept(name, sound))
    return _bare_jpeg(content) if content[:2] == JPEG_START else None


def _kept(name: bytes, sound: bool) -> bool:
    return name in PIXEL_CHUNKS or (name in COLOUR_CHUNKS and sound)


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """(name, the whole chunk, whether its checksum is right)."""
    position = len(SIGNATURE)
    while position + 12 <= len(content):
        length = struct.unpack(">I", content[position : position + 4])[0]
        chunk = content[position : position + 12 + length]
        yield chunk[4:8], chunk, chunk[-4:] == struct.pack(">I", zlib.crc32(chunk[4:-4]))
        position += len(chunk)


def _bare_jpeg(content: bytes) -> bytes:
    """Segments up to the first scan, without metadata, and the rest as it is."""
    kept, position = [JPEG_START], 2
    while position + 4 <= len(content) and content[position] == 0xFF:
        marker = content[position + 1]
        if marker in (0xDA, 0xFF) or 0xD0 <= marker <= 0xD9:
            break
        length = 2 + struct.unpack(">H", content[position + 2 : position + 4])[0]
        if marker not in JPEG_METADATA:
            kept.append(content[position : position + length])
        position += length
    return b"".join([*kept, content[position:]])
