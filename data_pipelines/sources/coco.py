"""COCO captions in the official layout (https://cocodataset.org): one document for each picture, with its captions.

`PATH/annotations/captions_train2017.json` holds `images` (`id`, `file_name`) and `annotations` (`id`, `image_id`,
`caption`); the pictures lie in `PATH/train2017/`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.documents import DamagedSample, Document, ImageSegment, TextSegment
from data_pipelines.failures import FailureLog
from data_pipelines.sources.files import visible_files
from data_pipelines.sources.reading import inside, read_object, rows_of, text_field, whole_number
from data_pipelines.sources.source import fingerprint_files

YEARS = ("2017", "2014")


class CocoCaptions:
    """Pictures in the order of their ids; captions in the order of theirs.

    path: the folder that holds `annotations`. split: `train` or `val`, of 2017 if it is there, else of 2014.
    A bad row is named and counted, and so is a picture that is missing or has no caption. Pictures are decoded when
    they are tokenized, not before. Raises ValueError for a folder or file that is not there or not COCO's.
    """

    def __init__(self, *, path: Path | None = None, split: str, failures: FailureLog) -> None:
        self.failures, self.split = failures, split
        self.file, self.pictures = _image_paths(path, split)
        content = read_object(self.file, "coco")
        self.images = rows_of(content, "images", self.file, "coco")
        self.annotations = rows_of(content, "annotations", self.file, "coco")
        self.notes: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.images)

    def fingerprint(self) -> str:
        """SHA-256 over the captions and over the names and sizes of the pictures."""
        pictures = list(visible_files(self.pictures))
        return fingerprint_files(self.file.parent.parent, whole=[self.file], listed=pictures)

    def documents(self) -> Iterator[Document]:
        """Pictures with captions. Raises TooMuchDamage past the failure limit."""
        captions = self._captions()
        for row in sorted(self.images, key=_order):
            name = f"coco {self.split} image {row.get('id') if isinstance(row, dict) else row!r}"
            try:
                document = self._document(row, captions)
            except DamagedSample as error:
                self.failures.drop(name, str(error))
            else:
                self.failures.keep()
                yield document
        for image_id, rest in captions.items():
            for number, _ in rest:
                self.failures.drop(f"coco {self.split} caption {number}", f"its image {image_id} is not in the list")
        self.failures.close()

    def _captions(self) -> dict[int, list[tuple[int, str]]]:
        """Image id -> (caption id, caption)."""
        captions: defaultdict[int, list[tuple[int, str]]] = defaultdict(list)
        for index, row in enumerate(self.annotations):
            try:
                number = whole_number(row, "id")
                caption = TextSegment(text=text_field(row, "caption"), role="caption").text
                captions[whole_number(row, "image_id")].append((number, caption.strip()))
            except DamagedSample as error:
                self.failures.drop(f"coco {self.split} annotations[{index}]", str(error))
        return {image_id: sorted(rows) for image_id, rows in captions.items()}

    def _document(self, row: Any, captions: dict[int, list[tuple[int, str]]]) -> Document:
        """Takes the picture's captions away from `captions`, whatever becomes of it."""
        image_id = whole_number(row, "id")
        texts = [caption for _, caption in captions.pop(image_id, [])]
        picture = inside(self.pictures, text_field(row, "file_name"))
        if not picture.is_file():
            raise DamagedSample(f"{row['file_name']}: missing file")
        if not texts:
            raise DamagedSample("no caption")
        meta = {"layout": "sample", "source": "coco", "split": self.split, "image_id": image_id}
        segments = (ImageSegment(source=picture), *(TextSegment(text=text, role="caption") for text in texts))
        return Document(key=f"{self.split}-{image_id:012d}", segments=segments, meta=meta)


def _image_paths(path: Path | None, split: str) -> tuple[Path, Path]:
    """The captions file and the folder of pictures."""
    if path is None or not path.is_dir():
        raise ValueError(f"coco needs a path, the folder that holds annotations/ and {split}2017/, got {path}")
    for year in YEARS:
        file, pictures = path / "annotations" / f"captions_{split}{year}.json", path / f"{split}{year}"
        if file.is_file() and pictures.is_dir():
            return file, pictures
    raise ValueError(
        f"coco: {path} holds no split {split!r}; it needs annotations/captions_{split}2017.json and {split}2017/ "
        "(or 2014)"
    )


def _order(row: Any) -> int:
    number = row.get("id") if isinstance(row, dict) else None
    return number if isinstance(number, int) else -1
