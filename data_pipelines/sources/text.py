"""Plain text: rows of JSON lines and of parquet, and whole text files, each one document."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.documents import DamagedSample, Document, TextSegment
from data_pipelines.failures import FailureLog
from data_pipelines.sources.reading import parse_object, text_field

OLDEST_PYARROW = 15
"""Before 14.0.1, reading a parquet file could run code from it (CVE-2023-47248)."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
WHOLE_FOLDER = "files read from the whole folder, because it has no split folders"


@dataclass(frozen=True, kw_only=True)
class Form:
    """How one kind of file is read: its rows by number, from 1, and the text of a row."""

    rows: Callable[[Path], Iterator[tuple[int, Any]]]
    """Raises DamagedSample or OSError where the file cannot be read on."""
    text: Callable[[Any], str]
    """Raises DamagedSample."""


class TextFiles:
    """One document with one text segment for each row or text file, kept as it is written, files by their names.

    path: a folder of `.jsonl` (rows with `text`), `.txt` (the whole file) and `.parquet` (the column `text`), of split
    folders with them, or one such file. Folders further down are not read. A row without text, or that is not UTF-8 or
    not JSON, is named and counted, and so is a file that cannot be read on; what stood before is kept.
    Raises ValueError for a folder, split or file that is not there, and for parquet without pyarrow.
    """

    def __init__(self, *, path: Path | None = None, split: str, failures: FailureLog) -> None:
        self.split, self.failures = split, failures
        self.files = _find(path, split)
        self.notes: dict[str, int] = {}
        if split != "train" and path in (self.files[0], self.files[0].parent):
            self.notes[WHOLE_FOLDER] = len(self.files)
        if parquet := [file for file in self.files if file.suffix.lower() == ".parquet"]:
            _check_pyarrow(parquet[0])

    def __len__(self) -> int:
        return sum(1 for _ in self._rows(FailureLog(limit=1.0, loud=False)))

    def fingerprint(self) -> str:
        """SHA-256 over the names and bytes of the files."""
        digest = hashlib.sha256()
        for file in self.files:
            with file.open("rb") as content:
                line = f"{file.name}\0{hashlib.file_digest(content, 'sha256').hexdigest()}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def documents(self) -> Iterator[Document]:
        """Good rows and files. Raises TooMuchDamage past the failure limit."""
        for file, number, row in self._rows(self.failures):
            try:
                document = self._document(file, number, row)
            except DamagedSample as error:
                self.failures.drop(f"{file.name} row {number}", str(error))
            else:
                self.failures.keep()
                yield document
        self.failures.close()

    def _rows(self, failures: FailureLog) -> Iterator[tuple[Path, int, Any]]:
        """Rows of every file as far as it can be read."""
        for file in self.files:
            try:
                for number, row in FORMS[file.suffix.lower()].rows(file):
                    yield file, number, row
            except DamagedSample as error:
                failures.drop(file.name, str(error))
            except OSError as error:
                failures.drop(file.name, f"cannot be read ({error.strerror or error})")

    def _document(self, file: Path, number: int, row: Any) -> Document:
        segment = TextSegment(text=FORMS[file.suffix.lower()].text(row))
        meta = {"layout": "sample", "source": "text", "split": self.split, "file": file.name, "row": number}
        key = f"{self.split}-{file.name}-{number:09d}".replace(".", "_")
        return Document(key=key, segments=(segment,), meta=meta)


def _find(path: Path | None, split: str) -> list[Path]:
    """The files of a split; never none."""
    kinds = f"{', '.join(list(FORMS)[:-1])} or {list(FORMS)[-1]}"
    if path is None:
        raise ValueError(f"text needs a path: a {kinds} file, or a folder of them")
    if path.is_file() and path.suffix.lower() in FORMS:
        return [path]
    if not path.is_dir():
        raise ValueError(f"text: {path} is not a folder, nor a {kinds} file")
    own = _files(path)
    splits = {folder.name: files for folder in sorted(path.iterdir()) if folder.is_dir() and (files := _files(folder))}
    if split in splits:
        return splits[split]
    if own and (split == "train" or not splits):
        return own
    if splits:
        raise ValueError(f"text: {path} has no split {split!r}; choose one of {', '.join(splits)}")
    raise ValueError(f"text: {path} holds no {kinds} file, nor do folders in it")


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in FORMS and file.is_file())


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, one in memory at a time."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if (content := line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line).strip():
                yield number, content


def _whole(file: Path) -> Iterator[tuple[int, bytes]]:
    yield 1, file.read_bytes().removeprefix(BYTE_ORDER_MARK)


def _cells(file: Path) -> Iterator[tuple[int, Any]]:
    """The column `text` of a parquet file, batch by batch; pyarrow is imported only where there is such a file."""
    pyarrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    number = 0
    try:
        with parquet.ParquetFile(file) as table:
            if "text" not in table.schema_arrow.names:
                raise DamagedSample("no column 'text'")
            for batch in table.iter_batches(columns=["text"]):
                for cell in batch.column(0):
                    number += 1
                    yield number, cell
    except pyarrow.ArrowException as error:
        raise DamagedSample(f"damaged after row {number}, what follows is lost ({error})") from error


def _check_pyarrow(file: Path) -> None:
    """Raises ValueError without pyarrow, or with one so old that it loads pickles which a file may hold."""
    try:
        version = importlib.metadata.version("pyarrow")
    except importlib.metadata.PackageNotFoundError:
        version = "0"
    if int(version.split(".")[0]) < OLDEST_PYARROW:
        found = "is not there" if version == "0" else f"is here in version {version}"
        raise ValueError(f"text: to read {file} takes pyarrow, which {found}: pip install 'pyarrow>={OLDEST_PYARROW}'")


def _decode(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DamagedSample("not UTF-8") from error


def _cell_text(cell: Any) -> str:
    try:
        return text_field({"text": cell.as_py()}, "text")
    except UnicodeDecodeError as error:
        raise DamagedSample("not UTF-8") from error


FORMS: dict[str, Form] = {
    ".jsonl": Form(rows=_lines, text=lambda line: text_field(parse_object(line), "text")),
    ".txt": Form(rows=_whole, text=_decode),
    ".parquet": Form(rows=_cells, text=_cell_text),
}
