"""Rows: what sources have in common whose files hold rows, in JSON lines or parquet, each row one document."""

from __future__ import annotations

import codecs
import hashlib
import importlib
import importlib.metadata
import lzma
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import IO, Any, ClassVar

from data_pipelines.documents import DamagedSample, Document, Segment
from data_pipelines.failures import FailureLog
from data_pipelines.sources.files import as_utf8, ending, is_hidden, not_read, open_file, visible_files
from data_pipelines.sources.reading import named, parse_object

OLDEST_PYARROW = 15
"""Before 14.0.1, reading a parquet file could run code from it (CVE-2023-47248)."""
ROWS_AT_ONCE = 256
"""Rows of a parquet file that are in memory together; they may hold pictures."""
NO_SPLIT_FILES = "files read from the whole folder, because it has no split folders"

SourceRow = bytes | Mapping[str, Any]
"""A line of a file, or the cells of a parquet row by column."""
Reader = Callable[[Path, Sequence[str]], Iterator[tuple[int, SourceRow]]]
"""The rows of a file by number, from 1, with the named columns; raises DamagedSample or OSError where it breaks off."""


class RowFiles(ABC):
    """Documents from the rows of files, in the order of the files' names.

    path: a folder of such files, or of split folders with them, or one file. Folders further down are not read. A bad
    row is named and counted, and so is a file that cannot be read on; what stood before is kept.
    Raises ValueError for a folder, split or file that is not there, and for parquet without pyarrow.
    """

    name: ClassVar[str]
    layout: ClassVar[str]
    readers: ClassVar[Mapping[str, Reader]]
    """Ending of a file -> how it is read."""
    columns: ClassVar[tuple[str, ...]]
    """What is read of a parquet file."""
    counted: ClassVar[tuple[str, ...]]
    """The columns that suffice to count its rows."""
    beside: ClassVar[frozenset[str]] = frozenset()
    """Endings of files that rows name, which may lie beside theirs."""

    def __init__(self, *, path: Path | None = None, split: str, failures: FailureLog) -> None:
        self.split, self.failures = split, failures
        self.files = find_files(path, split, self.name, list(self.readers))
        self.notes = {} if path in self.files else not_read(self.files[0].parent, self.files, self.beside)
        if split != "train" and path in (self.files[0], self.files[0].parent):
            self.notes[NO_SPLIT_FILES] = len(self.files)
        if parquet := [file for file in self.files if file.suffix.lower() == ".parquet"]:
            _check_pyarrow(parquet[0], self.name)

    @abstractmethod
    def _segments(self, file: Path, row: SourceRow) -> tuple[Segment, ...]:
        """What a row holds. Raises DamagedSample."""

    def __len__(self) -> int:
        return sum(1 for _ in self._rows(FailureLog(limit=1.0, loud=False), self.counted))

    def fingerprint(self) -> str:
        """SHA-256 over the names and bytes of the files."""
        return hash_files(self.files)

    def documents(self) -> Iterator[Document]:
        """Good rows. Raises TooMuchDamage past the failure limit."""
        for file, number, row in self._rows(self.failures, self.columns):
            try:
                document = self._document(file, number, row)
            except DamagedSample as error:
                self.failures.drop(named(f"{file.name} row {number}", error), str(error))
            else:
                self.failures.keep()
                yield document
        self.failures.close()

    def _rows(self, failures: FailureLog, columns: Sequence[str]) -> Iterator[tuple[Path, int, SourceRow]]:
        """Rows of every file as far as it can be read."""
        for file in self.files:
            try:
                for number, row in self.readers[ending(file)](file, columns):
                    yield file, number, row
            except DamagedSample as error:
                failures.drop(file.name, str(error))
            except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
                reason = error.strerror if isinstance(error, OSError) and error.strerror else error
                failures.drop(file.name, f"cannot be read ({reason})")

    def _document(self, file: Path, number: int, row: SourceRow) -> Document:
        meta = {"layout": self.layout, "source": self.name, "split": self.split, "file": file.name, "row": number}
        key = f"{self.split}-{file.name}-{number:09d}".replace(".", "_")
        return Document(key=key, segments=self._segments(file, row), meta=meta)


def json_lines(file: Path, columns: Sequence[str]) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, one in memory at a time, with all that they hold."""
    with open_file(file) as lines:
        for number, line in enumerate(_in_utf8(lines), start=1):
            if line.strip():
                yield number, line


def _in_utf8(lines: IO[bytes]) -> Iterator[bytes]:
    """Lines without a byte order mark; a file with another mark than UTF-8's is converted whole."""
    first = lines.readline()
    if first[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or first[:4] == codecs.BOM_UTF32_BE:
        yield from as_utf8(first + lines.read()).split(b"\n")
    else:
        yield as_utf8(first)
        yield from lines


def parquet_rows(file: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Cells of those columns that are there, batch by batch; pyarrow is imported only where there is such a file."""
    pyarrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    number = 0
    try:
        with parquet.ParquetFile(file) as table:
            present = [name for name in columns if name in table.schema_arrow.names]
            if not present:
                raise DamagedSample(f"no column {' or '.join(repr(name) for name in columns)}")
            for batch in table.iter_batches(batch_size=ROWS_AT_ONCE, columns=present):
                for cells in zip(*(batch.column(name) for name in present), strict=True):
                    number += 1
                    yield number, dict(zip(present, cells, strict=True))
    except pyarrow.ArrowException as error:
        raise DamagedSample(f"damaged after row {number}, what follows is lost ({error})") from error


def as_object(row: SourceRow) -> dict[str, Any]:
    """A row as plain values by field. Raises DamagedSample."""
    if isinstance(row, bytes):
        return parse_object(row)
    try:
        return {name: cell.as_py() for name, cell in row.items()}
    except UnicodeDecodeError as error:
        raise DamagedSample("not UTF-8") from error


def hash_files(files: Sequence[Path]) -> str:
    """SHA-256, in hex, over the names and bytes of files, which may be larger than the memory."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            line = f"{file.name}\0{hashlib.file_digest(content, 'sha256').hexdigest()}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def find_files(path: Path | None, split: str, source: str, suffixes: Sequence[str]) -> list[Path]:
    """The files of a split, never none. Raises ValueError, which names the source and what it reads."""
    kinds = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"
    if path is None:
        raise ValueError(f"{source} needs a path: a {kinds} file, or a folder of them")
    if path.is_file() and _is_read(path, suffixes):
        return [path]
    if not path.is_dir():
        raise ValueError(f"{source}: {path} is not a folder, nor a {kinds} file")
    inside = _files(path, suffixes)
    folders = [each for each in sorted(path.iterdir()) if each.is_dir() and not is_hidden(PurePath(each.name))]
    splits = {folder.name: files for folder in folders if (files := _files(folder, suffixes))}
    if split in splits:
        return splits[split]
    if inside and (split == "train" or not splits):
        return inside
    if splits:
        raise ValueError(f"{source}: {path} has no split {split!r}; choose one of {', '.join(splits)}")
    raise ValueError(f"{source}: {path} holds no {kinds} file, nor do folders in it")


def _files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    return [file for file in visible_files(folder) if _is_read(file, suffixes)]


def _is_read(file: Path, suffixes: Sequence[str]) -> bool:
    """Whether a file is of a kind that is read. Parquet, which is compressed inside, is not read from a `.gz`."""
    suffix = file.suffix.lower()
    return ending(file) in suffixes and (suffix == ending(file) or ending(file) != ".parquet")


def _check_pyarrow(file: Path, source: str) -> None:
    """Raises ValueError without pyarrow, or with one so old that it loads pickles which a file may hold."""
    try:
        version = importlib.metadata.version("pyarrow")
    except importlib.metadata.PackageNotFoundError:
        version = "0"
    if int(version.split(".")[0]) < OLDEST_PYARROW:
        found = "is not there" if version == "0" else f"is here in version {version}"
        remedy = f"pip install 'pyarrow>={OLDEST_PYARROW}'"
        raise ValueError(f"{source}: to read {file} takes pyarrow, which {found}: {remedy}")
