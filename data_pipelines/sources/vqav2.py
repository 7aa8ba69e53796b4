"""VQAv2 in the official layout (https://visualqa.org): one document for each picture, with its questions.

`PATH/v2_OpenEnded_mscoco_val2014_questions.json` holds `questions` (`question_id`, `image_id`, `question`),
`PATH/v2_mscoco_val2014_annotations.json` holds `annotations` (`question_id`, `multiple_choice_answer`, ten `answers`);
the pictures are `PATH/val2014/COCO_val2014_000000000042.jpg` and so on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.documents import DamagedSample, Document, ImageSegment, TextSegment
from data_pipelines.failures import FailureLog
from data_pipelines.sources.files import visible_files
from data_pipelines.sources.reading import read_object, rows_of, text_field, whole_number
from data_pipelines.sources.source import fingerprint_files


@dataclass(frozen=True, kw_only=True)
class _Asked:
    number: int
    question: str
    answer: str
    answers: tuple[str, ...]


class VQAv2:
    """Pictures in the order of their ids, questions in the order of theirs.

    The document holds the answer that most people gave; `meta["answers"]` holds what all ten said, question by
    question, which the `vqa` task scores with. path: the folder of the two JSON files. split: `train` or `val`.
    A bad row is named and counted, and so is a question without answers or a picture that is missing. Raises
    ValueError for a folder or file that is not there or not VQAv2's.
    """

    def __init__(self, *, path: Path | None = None, split: str, failures: FailureLog) -> None:
        if path is None or not path.is_dir():
            raise ValueError(f"vqav2 needs a path, the folder that holds its questions and annotations, got {path}")
        self.failures, self.split, self.path = failures, split, path
        self.notes: dict[str, int] = {}
        self.files = {
            "questions": path / f"v2_OpenEnded_mscoco_{split}2014_questions.json",
            "annotations": path / f"v2_mscoco_{split}2014_annotations.json",
        }
        self.rows = {
            name: rows_of(read_object(file, "vqav2"), name, file, "vqav2") for name, file in self.files.items()
        }
        self.pictures = path / f"{split}2014"
        if not self.pictures.is_dir():
            raise ValueError(
                f"vqav2: {self.pictures} is not there; it must hold COCO_{split}2014_000000000042.jpg, ..."
            )

    def __len__(self) -> int:
        return len({row["image_id"] for row in _numbered(self.rows["questions"], "image_id")})

    def fingerprint(self) -> str:
        """SHA-256 over questions and annotations and over the names and sizes of the pictures."""
        pictures = list(visible_files(self.pictures))
        return fingerprint_files(self.path, whole=self.files.values(), listed=pictures)

    def documents(self) -> Iterator[Document]:
        """Pictures with questions. Raises TooMuchDamage past the failure limit."""
        for image_id, asked in sorted(self._asked().items()):
            picture = self.pictures / f"COCO_{self.split}2014_{image_id:012d}.jpg"
            if picture.is_file():
                self.failures.keep()
                yield self._document(image_id, picture, sorted(asked, key=lambda one: one.number))
            else:
                self.failures.drop(picture.name, "missing file")
        self.failures.close()

    def _asked(self) -> dict[int, list[_Asked]]:
        """Image id -> its questions that have answers."""
        annotations = {row["question_id"]: row for row in _numbered(self.rows["annotations"], "question_id")}
        asked: defaultdict[int, list[_Asked]] = defaultdict(list)
        for index, row in enumerate(self.rows["questions"]):
            try:
                number = whole_number(row, "question_id")
                if number not in annotations:
                    raise DamagedSample("no annotation with its question_id")
                asked[whole_number(row, "image_id")].append(_question(number, row, annotations[number]))
            except DamagedSample as error:
                self.failures.drop(f"vqav2 {self.split} questions[{index}]", str(error))
        return asked

    def _document(self, image_id: int, picture: Path, asked: list[_Asked]) -> Document:
        texts = [
            TextSegment(text=text, role=role)
            for one in asked
            for text, role in ((one.question, "question"), (one.answer, "answer"))
        ]
        meta = {
            "layout": "sample",
            "source": "vqav2",
            "split": self.split,
            "image_id": image_id,
            "question_ids": [one.number for one in asked],
            "answers": [list(one.answers) for one in asked],
        }
        segments = (ImageSegment(source=picture), *texts)
        return Document(key=f"{self.split}-{image_id:012d}", segments=segments, meta=meta)


def _numbered(rows: list[Any], field: str) -> Iterator[dict[str, Any]]:
    """Rows with a whole number in a field; the others have no part to play and show as missing."""
    return (row for row in rows if isinstance(row, dict) and isinstance(row.get(field), int))


def _question(number: int, row: Any, annotation: dict[str, Any]) -> _Asked:
    answers = annotation.get("answers")
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, dict) for answer in answers):
        raise DamagedSample("its annotation holds no answers")
    return _Asked(
        number=number,
        question=TextSegment(text=text_field(row, "question"), role="question").text,
        answer=TextSegment(text=text_field(annotation, "multiple_choice_answer"), role="answer").text,
        answers=tuple(text_field(answer, "answer") for answer in answers),
    )
