"""A user's own pictures: a folder with a `metadata.jsonl`, as Hugging Face datasets lays it out.

A row names a picture and says something about it: `{"file_name": "cat.png", "text": "a cat"}`. Questions stand beside
the text or instead of it: `question` and `answer` as two strings or two lists, or `qa` as a list of such pairs.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from data_pipelines.documents import DamagedSample, Document, ImageSegment, Segment, TextSegment
from data_pipelines.failures import FailureLog
from data_pipelines.sources.files import as_utf8, ending, is_hidden, not_read, open_file, visible_files
from data_pipelines.sources.reading import check_picture, inside, parse_object, questions_of, text_field
from data_pipelines.sources.source import fingerprint_files

METADATA = "metadata.jsonl"
IMAGE_SUFFIXES = frozenset(".avif .bmp .gif .jpeg .jpg .pgm .png .ppm .tif .tiff .webp".split())

UNMENTIONED = f"pictures in the folder that {METADATA} does not mention"
NO_SPLIT_ROWS = "rows read from the whole folder, because it has no split folders"


class ImageFolder:
    """One sample document for each good row of `metadata.jsonl`, in file order; bad rows are named and counted.

    path: the folder; rows come from `path/split/metadata.jsonl`, or from `path/metadata.jsonl` for the train split
    and for any split of a folder without split folders.
    Raises ValueError for a folder or a split that is not there.
    """

    def __init__(self, *, path: Path | None = None, split: str, failures: FailureLog) -> None:
        self.split, self.failures = split, failures
        self.folder = _split_folder(path, split)
        self.metadata = _metadata(self.folder)
        self.rows = [(number, line) for number, line in _numbered_lines(self.metadata) if line.strip()]
        self.notes = not_read(self.folder, [self.metadata, *self._pictures()])
        if path == self.folder and split != "train":
            self.notes[NO_SPLIT_ROWS] = len(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def fingerprint(self) -> str:
        """SHA-256 over metadata.jsonl and over the names and sizes of the pictures in the folder."""
        return fingerprint_files(self.folder, whole=[self.metadata], listed=self._pictures())

    def documents(self) -> Iterator[Document]:
        """Good rows as documents, each picture opened once. Raises TooMuchDamage past the failure limit."""
        mentioned = set()
        for number, line in self.rows:
            name = f"{METADATA} line {number}"
            try:
                row = parse_object(line)
                file_name = text_field(row, "file_name")
                name = f"{file_name} ({name})"
                picture = inside(self.folder, file_name)
                mentioned.add(picture)
                document = self._document(number, row, picture)
            except DamagedSample as error:
                self.failures.drop(name, str(error))
            else:
                self.failures.keep()
                yield document
        self.notes[UNMENTIONED] = sum(picture.resolve() not in mentioned for picture in self._pictures())
        self.failures.close()

    def _document(self, number: int, row: dict[str, Any], picture: Path) -> Document:
        segments: list[Segment] = []
        if row.get("text") is not None:
            segments.append(TextSegment(text=text_field(row, "text"), role="caption"))
        for question, answer in questions_of(row):
            segments += [TextSegment(text=question, role="question"), TextSegment(text=answer, role="answer")]
        if not segments:
            raise DamagedSample("neither text nor questions")
        meta = {"layout": "sample", "source": "imagefolder", "split": self.split, "file_name": row["file_name"]}
        check_picture(
            picture
        )  # a damaged picture is named now; a sound one is read again in its turn, not kept in memory
        image = ImageSegment(source=picture)
        return Document(key=f"{self.split}-{number:06d}", segments=(image, *segments), meta=meta)

    def _pictures(self) -> list[Path]:
        """Picture files below the folder, without those of split folders inside it."""
        splits = _split_folders(self.folder)
        visible = (file for file in self.folder.rglob("*") if not is_hidden(file.relative_to(self.folder)))
        files = (file for file in visible if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
        return [file for file in files if not any(file.is_relative_to(split) for split in splits)]


def _split_folder(path: Path | None, split: str) -> Path:
    """The folder whose metadata.jsonl describes the split."""
    if path is None:
        raise ValueError(f"imagefolder needs a path: a folder with images and {METADATA}")
    if not path.is_dir():
        raise ValueError(f"imagefolder: {path} is not a folder; give one with images and {METADATA}")
    splits = _split_folders(path)
    if path / split in splits:
        return path / split
    if _has_metadata(path) and (split == "train" or not splits):
        return path
    if splits:
        raise ValueError(
            f"imagefolder: {path} has no split {split!r}; choose one of {', '.join(s.name for s in splits)}"
        )
    found = next((f", but {file.name}" for file in visible_files(path) if file.stem.lower() == "metadata"), "")
    raise ValueError(
        f"imagefolder: {path} holds no {METADATA}{found}, nor do folders in it; write one with a row per image"
    )


def _split_folders(path: Path) -> list[Path]:
    folders = (folder for folder in path.iterdir() if folder.is_dir() and not is_hidden(PurePath(folder.name)))
    return sorted(filter(_has_metadata, folders))


def _has_metadata(folder: Path) -> bool:
    return any(map(_is_metadata, visible_files(folder)))


def _is_metadata(file: Path) -> bool:
    name = file.name.lower()
    return name == METADATA or (name.startswith(METADATA) and ending(file) == ".jsonl")


def _metadata(folder: Path) -> Path:
    """`metadata.jsonl`, however its name is written and compressed; the shortest of several."""
    return min(filter(_is_metadata, visible_files(folder)), key=lambda file: (len(file.name), file.name))


def _numbered_lines(metadata: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with open_file(metadata) as file:
            content = as_utf8(file.read())
    except (DamagedSample, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"imagefolder: {metadata} cannot be read ({error})") from error
    return enumerate(content.split(b"\n"), start=1)
