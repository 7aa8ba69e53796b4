"""Plain text: rows of JSON lines and of parquet, and whole text files, each one document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from data_pipelines.documents import TextSegment
from data_pipelines.sources.files import decoded, ending, open_file
from data_pipelines.sources.reading import text_field
from data_pipelines.sources.rows import (
    Reader,
    RowFiles,
    SourceRow,
    as_object,
    json_lines,
    parquet_rows,
)


def _whole(file: Path, columns: Sequence[str]) -> Iterator[tuple[int, bytes]]:
    with open_file(file) as content:
        yield 1, content.read()


class TextFiles(RowFiles):
    """One document with one text segment for each row or text file, kept as it is written, files by their names.

    path: a folder of `.jsonl` (rows with `text`), `.txt` (the whole file) and `.parquet` (the column `text`), of split
    folders with them, or one such file; the first two may be compressed (`.gz`, `.bz2`, `.xz`). Folders further down
    are not read. A row without text, or that is not UTF-8 or not JSON, is named and counted, and so is a file that
    cannot be read on; what stood before is kept.
    Raises ValueError for a folder, split or file that is not there, and for parquet without pyarrow.
    """

    name, layout = "text", "sample"
    columns = counted = ("text",)
    readers: ClassVar[Mapping[str, Reader]] = {".jsonl": json_lines, ".txt": _whole, ".parquet": parquet_rows}

    def _segments(self, file: Path, row: SourceRow) -> tuple[TextSegment]:
        if isinstance(row, bytes) and ending(file) == ".txt":
            return (TextSegment(text=decoded(row)),)
        return (TextSegment(text=text_field(as_object(row), "text")),)
