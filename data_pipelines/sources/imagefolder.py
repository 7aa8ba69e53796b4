"""A user's own pictures: a folder with a `metadata.jsonl`, as Hugging Face datasets lays it out.

A row names a picture and says something about it: `{"file_name": "cat.png", "text": "a cat"}`. Questions stand beside
the text or instead of it: `question` and `answer` as two strings or two lists, or `qa` as a list of such pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.documents import DamagedSample, Document, ImageSegment, Segment, TextSegment
from data_pipelines.failures import FailureLog
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
        self.rows = [(number, line) for number, line in _numbered_lines(self.folder / METADATA) if line.strip()]
        self.notes: dict[str, int] = {}
        if path == self.folder and split != "train":
            self.notes[NO_SPLIT_ROWS] = len(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def fingerprint(self) -> str:
        """SHA-256 over metadata.jsonl and over the names and sizes of the pictures in the folder."""
        return fingerprint_files(self.folder, whole=[self.folder / METADATA], listed=self._pictures())

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
        files = (file for file in self.folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
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
    if (path / METADATA).is_file() and (split == "train" or not splits):
        return path
    if splits:
        raise ValueError(
            f"imagefolder: {path} has no split {split!r}; choose one of {', '.join(s.name for s in splits)}"
        )
    raise ValueError(f"imagefolder: {path} holds no {METADATA}, nor do folders in it; write one with a row per image")


def _split_folders(path: Path) -> list[Path]:
    return sorted(metadata.parent for metadata in path.glob(f"*/{METADATA}"))


def _numbered_lines(metadata: Path) -> Iterator[tuple[int, bytes]]:
    return enumerate(metadata.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1)
