"""Tars of pictures with captions, as img2dataset and webdataset's ShardWriter leave them, read one after the other.

Members of one sample share the name up to the first dot and follow one another: `KEY.jpg` (or jpeg, png, webp) with
`KEY.txt` (its caption), `KEY.json` (img2dataset's row, whose `caption` serves where there is no txt; questions as in
`metadata.jsonl`), or both.
"""

from __future__ import annotations

import io
import lzma
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from data_pipelines.documents import DamagedSample, Document, ImageSegment, Segment, TextSegment
from data_pipelines.failures import FailureLog
from data_pipelines.sources.files import COMPRESSED, HIDDEN_FILES, decoded, ending, is_hidden, not_read, visible_files
from data_pipelines.sources.reading import parse_object, questions_of, text_field
from data_pipelines.sources.source import fingerprint_files

PICTURES = ("jpg", "jpeg", "png", "webp", "avif", "bmp", "gif", "pgm", "ppm", "tif", "tiff")
TAR_ENDINGS = {".tgz": ".gz", ".tbz2": ".bz2", ".txz": ".xz"}
"""Short endings of compressed tars."""
BUFFER = 2**16
END_MARK = bytes(tarfile.BLOCKSIZE)
NO_SPLIT_TARS = "tars read for a split that has no folder of its own"

Members = dict[str, bytes]
"""Ending -> content, of one sample."""


class WebDataset:
    """One document for each good sample, tar by tar in the order of their names; nothing is unpacked to the disk.

    path: a folder of tars, or of split folders with tars; or one tar; they may be compressed (gz, bz2, xz). A sample
    without picture or text, with text that is not UTF-8, or with the key of an earlier one is named and counted, and so
    are members that are no plain files or whose names lead elsewhere, and a tar that is cut off or damaged: what stood
    before the damage is kept.
    Pictures are decoded when they are tokenized. Raises ValueError where there is no tar.
    """

    def __init__(self, *, path: Path | None = None, split: str, failures: FailureLog) -> None:
        if path is None:
            raise ValueError("webdataset needs a path: a folder of tar files, or one tar file")
        self.split, self.failures = split, failures
        self.root = path / split if (path / split).is_dir() else path
        self.tars = [path] if path.is_file() else _tars(self.root)
        if not self.tars:
            raise ValueError(f"webdataset: {self.root} holds no .tar file")
        self.notes = {} if path.is_file() else not_read(self.root, self.tars)
        if self.root == path and split != "train":
            self.notes[NO_SPLIT_TARS] = len(self.tars)

    def __len__(self) -> int:
        failures = FailureLog(limit=1.0, loud=False)
        return sum(1 for tar in self.tars for _ in _samples(tar, failures, Counter(), content=False))

    def fingerprint(self) -> str:
        """SHA-256 over the names and sizes of the tars."""
        return fingerprint_files(self.tars[0].parent, whole=[], listed=self.tars)

    def documents(self) -> Iterator[Document]:
        """Good samples. Raises TooMuchDamage past the failure limit."""
        keys: set[str] = set()
        counts: Counter[str] = Counter()
        for tar in self.tars:
            for name, members in _samples(tar, self.failures, counts):
                key = f"{self.split}-{tar.stem}-{name}".replace(".", "_")
                try:
                    if key in keys:
                        raise DamagedSample("an earlier sample has the same key")
                    document = self._document(key, name, members)
                except DamagedSample as error:
                    self.failures.drop(f"{tar.name} {name}", str(error))
                else:
                    keys.add(key)
                    self.failures.keep()
                    yield document
        self.notes |= counts
        self.failures.close()

    def _document(self, key: str, name: str, members: Members) -> Document:
        picture = next((members[ending] for ending in PICTURES if ending in members), None)
        if picture is None:
            raise DamagedSample(f"no picture ({', '.join(PICTURES)})")
        if not picture:
            raise DamagedSample("its picture is empty (0 bytes)")
        row = parse_object(members["json"]) if "json" in members else {}
        segments: list[Segment] = [ImageSegment(source=picture)]
        if (caption := _caption(members, row)) is not None:
            segments.append(TextSegment(text=caption, role="caption"))
        for question, answer in questions_of(row):
            segments += [TextSegment(text=question, role="question"), TextSegment(text=answer, role="answer")]
        if len(segments) == 1:
            raise DamagedSample("neither a caption nor questions")
        meta = {"layout": "sample", "source": "webdataset", "split": self.split, "sample": name}
        return Document(key=key, segments=tuple(segments), meta=meta)


def _caption(members: Members, row: dict[str, Any]) -> str | None:
    """From the txt, or else from the json."""
    if "txt" not in members:
        return text_field(row, "caption") if row.get("caption") is not None else None
    return decoded(members["txt"], "its txt is").strip()


def _tars(folder: Path) -> list[Path]:
    """Tars by name, compressed ones too."""
    short = tuple(TAR_ENDINGS)
    files = visible_files(folder) if folder.is_dir() else ()
    return [file for file in files if ending(file) == ".tar" or file.suffix.lower() in short]


def _open_tar(path: Path) -> BinaryIO:
    """A tar's bytes, unpacked; the buffer keeps a step back from being unpacked from the start again."""
    suffix = path.suffix.lower()
    opener = COMPRESSED.get(TAR_ENDINGS.get(suffix, suffix))
    return io.BufferedReader(opener(path, "rb"), BUFFER) if opener else path.open("rb")


def _samples(
    tar: Path, failures: FailureLog, counts: Counter[str], *, content: bool = True
) -> Iterator[tuple[str, Members]]:
    """(name, members) of every sample; without `content`, members are empty bytes. Hidden ones go into `counts`."""
    name, members = "", {}
    with _open_tar(tar) as file:
        try:
            for member, data in _members(file, tar.name, failures, content):
                if is_hidden(PurePosixPath(member)):
                    counts[HIDDEN_FILES] += 1
                    continue
                stem, ending = _split(member)
                if stem != name and members:
                    yield name, members
                    members = {}
                name = stem
                if ending in members:
                    failures.drop(f"{tar.name} {member}", "its sample has this member already")
                else:
                    members[ending] = data
        except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            failures.drop(tar.name, f"cut off or damaged; what follows is lost ({error})")
            return
    if members:
        yield name, members


def _members(file: BinaryIO, name: str, failures: FailureLog, content: bool) -> Iterator[tuple[str, bytes]]:
    """(name, content) of plain files. Raises TarError for a damaged archive, also where tarfile would just stop."""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            shown = member.name.encode("utf-8", "backslashreplace").decode()
            if not member.isfile():
                if not member.isdir():
                    failures.drop(f"{name} {shown}", "a member that is no plain file")
            elif path.is_absolute() or ".." in path.parts:
                failures.drop(f"{name} {shown}", "its name leads out of the archive")
            elif shown != member.name:
                failures.drop(f"{name} {shown}", "its name is not UTF-8")
            else:
                stream = tar.extractfile(member) if content else None
                yield member.name, stream.read() if stream else b""
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != END_MARK:
            raise tarfile.ReadError(f"no end mark at byte {tar.offset}")


def _split(member: str) -> tuple[str, str]:
    """Name of the sample and ending, split at the first dot of the file's own name, as webdataset does."""
    match = re.match(r"^((?:.*/)?[^/.]*)\.?([^/]*)$", member, re.DOTALL)
    assert match is not None
    return match[1], match[2].lower()
