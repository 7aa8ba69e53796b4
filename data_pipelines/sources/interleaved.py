"""Interleaved text and images: rows of OBELICS and of MMC4, each one document that is learnt in its reading order.

OBELICS (arXiv 2306.16527): `texts` and `images` have the same length, and at each index one of them is null.
MMC4 (arXiv 2304.06939): `text_list` holds sentences; each of `image_info` names an image and, by its
`matched_text_index`, the sentence that it stands before. Which of the two a row is, its fields say.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

from data_pipelines.documents import DamagedSample, ImageSegment, Segment, TextSegment
from data_pipelines.sources.files import is_hidden
from data_pipelines.sources.imagefolder import IMAGE_SUFFIXES
from data_pipelines.sources.reading import at, segment_of, text_field, whole_number
from data_pipelines.sources.rows import Reader, RowFiles, SourceRow, as_object, json_lines, parquet_rows
from data_pipelines.sources.source import fingerprint_files

OBELICS, MMC4 = ("texts", "images"), ("text_list", "image_info")
PARAGRAPHS, SENTENCES = "\n\n", " "
"""What parts two texts that follow one another, in OBELICS and in MMC4."""
IMAGES = "images"
"""The folder of MMC4's images; without it, or for those that it lacks, they lie beside the file."""


class Interleaved(RowFiles):
    """One document for each row, its texts and images in the order of the row, files by their names.

    path: a folder of `.jsonl` and `.parquet`, of split folders with them, or one such file; images lie in the folder
    of the file that names them, or below it. Folders further down are not searched for rows. A row with any damage,
    an image that is missing, lies elsewhere or is none included, is named, counted and skipped whole.
    Raises ValueError for a folder, split or file that is not there, and for parquet without pyarrow.
    """

    name, layout = "interleaved", "interleaved"
    columns, counted = (*OBELICS, *MMC4), (OBELICS[0], MMC4[0])
    beside = IMAGE_SUFFIXES
    readers: ClassVar[Mapping[str, Reader]] = {".jsonl": json_lines, ".parquet": parquet_rows}

    def fingerprint(self) -> str:
        """SHA-256 over the names and bytes of the files and the names and sizes of the images in their folder."""
        folder = self.files[0].parent
        visible = (file for file in folder.rglob("*") if not is_hidden(file.relative_to(folder)))
        pictures = (file for file in visible if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
        both = super().fingerprint() + fingerprint_files(folder, whole=[], listed=pictures)
        return hashlib.sha256(both.encode()).hexdigest()

    def _segments(self, file: Path, row: SourceRow) -> tuple[Segment, ...]:
        fields = {name: value for name, value in as_object(row).items() if value is not None}
        forms = [form for form in (OBELICS, MMC4) if any(name in fields for name in form)]
        if len(forms) != 1:
            joined = "both texts with images and" if forms else "neither texts with images nor"
            raise DamagedSample(f"{joined} text_list with image_info")
        if forms[0] == OBELICS:
            return aligned(list_field(fields, "texts"), list_field(fields, "images"), file.parent)
        return in_order(_matched(list_field(fields, "text_list"), list_field(fields, "image_info"), file), SENTENCES)


def aligned(texts: list[Any], images: list[Any], folder: Path) -> tuple[Segment, ...]:
    """Segments of OBELICS' two lists; paths of images start at the folder. Raises DamagedSample."""
    if len(texts) != len(images):
        raise DamagedSample("texts and images are not of the same length")
    return in_order(_one_of_each(texts, images, folder), PARAGRAPHS)


def list_field(row: Mapping[str, Any], field: str) -> list[Any]:
    """A field that must be a list. Raises DamagedSample."""
    value = row.get(field)
    if not isinstance(value, list):
        raise DamagedSample(f"no {field}" if value is None else f"{field} is not a list")
    return value


def in_order(parts: Iterable[str | ImageSegment], between: str) -> tuple[Segment, ...]:
    """Texts and images as segments; texts that follow one another are one. Raises DamagedSample where there is none."""
    segments: list[Segment] = []
    for is_text, run in groupby(parts, key=lambda part: isinstance(part, str)):
        if is_text:
            segments.append(TextSegment(text=between.join(part for part in run if isinstance(part, str))))
        else:
            segments += [part for part in run if isinstance(part, ImageSegment)]
    if not segments:
        raise DamagedSample("an empty row")
    return tuple(segments)


def _one_of_each(texts: list[Any], images: list[Any], folder: Path) -> Iterator[str | ImageSegment]:
    for index, (text, image) in enumerate(zip(texts, images, strict=True)):
        with at(f"index {index}"):
            if (text is None) == (image is None):
                raise DamagedSample("neither a text nor an image" if text is None else "a text and an image at once")
            yield _text(text) if image is None else segment_of(image, folder)


def _matched(texts: list[Any], infos: list[Any], file: Path) -> Iterator[str | ImageSegment]:
    """Sentences, each with the images that match it before it, in the order of `image_info`."""
    pictures: dict[int, list[ImageSegment]] = {index: [] for index in range(len(texts))}
    for index, info in enumerate(infos):
        with at(f"image_info[{index}]"):
            index = whole_number(info, "matched_text_index")
            if index not in pictures:
                raise DamagedSample("matched_text_index is out of range")
            pictures[index].append(_named_picture(text_field(info, "image_name"), file.parent))
    for index, text in enumerate(texts):
        yield from pictures[index]
        with at(f"text_list[{index}]"):
            yield _text(text)


def _named_picture(name: str, folder: Path) -> ImageSegment:
    images = folder / IMAGES
    return segment_of(name, images if os.path.isfile(images / name) else folder)


def _text(value: Any) -> str:
    return TextSegment(text=text_field({"text": value}, "text")).text
