"""Hugging Face: a folder that `datasets` wrote with `save_to_disk`. Nothing is downloaded.

Rows are read as Arrow holds them, so that `datasets` decodes no picture and writes no copy beside the data.
"""

from __future__ import annotations

import hashlib
import importlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.documents import DamagedSample, Document, Segment, TextSegment
from data_pipelines.failures import FailureLog
from data_pipelines.sources.interleaved import aligned, list_field
from data_pipelines.sources.reading import named, segment_of, text_field
from data_pipelines.sources.rows import ROWS_AT_ONCE, as_object, hash_files

USUAL = {
    "image": ("image",),
    "text": ("text", "caption", "captions"),
    "question": ("question",),
    "answer": ("answer", "answers"),
    "texts": ("texts",),
    "images": ("images",),
}
"""What a column is called where no option names it: the first of these that is there."""
OTHER_SPLIT = "rows read for a split that the folder does not name"
UNANSWERED = "rows whose question is not read, because there is no column of answers"


class SavedDataset:
    """One document for each good row, in the order of the rows; a bad row is named and counted.

    path: the folder of a Dataset, or of a DatasetDict with the split. Columns: `image` with `text`, `caption` or
    `captions`, with `question` and `answer` or `answers`, or with both; `text` alone; or `texts` and `images` of
    interleaved documents, as OBELICS has them. Each `..._column` names another column to take for one of these.
    Of several answers the most frequent is learnt, and all are kept in `meta["answers"]`.
    Raises ValueError without the package datasets, and for a folder, split or column that is not there.
    """

    def __init__(
        self,
        *,
        path: Path | None = None,
        split: str,
        failures: FailureLog,
        image_column: str | None = None,
        text_column: str | None = None,
        question_column: str | None = None,
        answer_column: str | None = None,
        texts_column: str | None = None,
        images_column: str | None = None,
    ) -> None:
        self.split, self.failures = split, failures
        self.folder, self.dataset = _open(path, split)
        options = {
            "image": image_column,
            "text": text_column,
            "question": question_column,
            "answer": answer_column,
            "texts": texts_column,
            "images": images_column,
        }
        self.columns = _columns(self.dataset.column_names, options)
        self.notes: dict[str, int] = {}
        if self.folder == path and split != str(self.dataset.split or "train"):
            self.notes[OTHER_SPLIT] = len(self.dataset)
        if "question" in self.columns and "answer" not in self.columns:
            self.notes[UNANSWERED] = len(self.dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def fingerprint(self) -> str:
        """SHA-256 over the names and bytes of the split's Arrow files, and over which columns are read."""
        files = hash_files([Path(file["filename"]) for file in self.dataset.cache_files])
        return hashlib.sha256(f"{files}{sorted(self.columns.items())}".encode()).hexdigest()

    def documents(self) -> Iterator[Document]:
        """Good rows, numbered from 0 as datasets does. Raises TooMuchDamage past the failure limit."""
        for number, cells in enumerate(self._rows()):
            try:
                document = self._document(number, as_object(cells))
            except DamagedSample as error:
                self.failures.drop(named(f"hf {self.split} row {number}", error), str(error))
            else:
                self.failures.keep()
                yield document
        self.failures.close()

    def _rows(self) -> Iterator[dict[str, Any]]:
        """Cells by what they are to us: image, text, ..."""
        rows = self.dataset.select_columns(sorted(set(self.columns.values()))).with_format("arrow")
        for table in rows.iter(batch_size=ROWS_AT_ONCE):
            for cells in zip(*(table.column(column) for column in self.columns.values()), strict=True):
                yield dict(zip(self.columns, cells, strict=True))

    def _document(self, number: int, row: dict[str, Any]) -> Document:
        layout = "interleaved" if "images" in self.columns else "sample"
        meta: dict[str, Any] = {"layout": layout, "source": "hf", "split": self.split, "row": number}
        segments: Sequence[Segment]
        if "images" in self.columns:
            segments = aligned(list_field(row, "texts"), list_field(row, "images"), self.folder)
        elif "image" in self.columns:
            asked = _questions(row) if "answer" in self.columns else []
            segments = _sample(row, asked, self.folder)
            if any(len(answers) > 1 for _, answers in asked):
                meta["answers"] = [answers for _, answers in asked]
        else:
            segments = [TextSegment(text=text_field(row, "text"))]
        return Document(key=f"{self.split}-{number:09d}", segments=tuple(segments), meta=meta)


def _open(path: Path | None, split: str) -> tuple[Path, Any]:
    """The folder of a split and its Dataset."""
    if path is None:
        raise ValueError("hf needs a path: a folder that datasets wrote with save_to_disk")
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        remedy = "pip install 'unimodal[hf]'"
        raise ValueError(f"hf: to read {path} takes the package datasets, which is not there: {remedy}") from error
    try:
        found = datasets.load_from_disk(str(path), keep_in_memory=False)
    except Exception as error:  # a folder that is no data set, or a damaged one, raises errors of every kind
        reason = " ".join(str(error).split())
        raise ValueError(f"hf: {path} is not a whole folder of save_to_disk ({reason})") from error
    if not isinstance(found, datasets.DatasetDict):
        return path, found
    if split not in found:
        raise ValueError(f"hf: {path} has no split {split!r}; choose one of {', '.join(found)}")
    return path / split, found[split]


def _columns(names: Sequence[str], options: dict[str, str | None]) -> dict[str, str]:
    """What to read -> its column. Raises ValueError where that makes no documents, or an option names no column."""
    there = f"its columns are: {', '.join(names)}"
    chosen: dict[str, str] = {}
    for role, option in options.items():
        if option is not None and option not in names:
            raise ValueError(f"hf: there is no column {option!r} to be the {role}_column; {there}")
        if (column := option or next((usual for usual in USUAL[role] if usual in names), None)) is not None:
            chosen[role] = column
    if {"texts", "images"} <= chosen.keys() and not (options["image"] or options["text"]):
        roles = ["texts", "images"]
    elif "image" in chosen and ("text" in chosen or {"question", "answer"} <= chosen.keys()):
        roles = ["image", "text", *(["question", "answer"] if "question" in chosen else [])]
    elif "text" in chosen and "image" not in chosen:
        roles = ["text"]
    else:
        needed = "an image with text or with question and answer, or text alone, or texts and images"
        raise ValueError(f"hf: takes columns of {needed}; {there}; other names are options: image_column …")
    return {role: chosen[role] for role in roles if role in chosen}


def _sample(row: dict[str, Any], asked: list[tuple[str, list[str]]], folder: Path) -> list[Segment]:
    captions = row.get("text")
    listed = captions if isinstance(captions, list) else [captions] if captions is not None else []
    segments: list[Segment] = [TextSegment(text=text_field({"text": t}, "text"), role="caption") for t in listed]
    for question, answers in asked:
        majority = Counter(answers).most_common(1)[0][0]
        segments += [TextSegment(text=question, role="question"), TextSegment(text=majority, role="answer")]
    if not segments:
        raise DamagedSample("neither text nor questions")
    if row["image"] is None:
        raise DamagedSample("no image")
    return [segment_of(row["image"], folder), *segments]


def _questions(row: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Questions, each with all its answers."""
    questions, answers = row["question"], row["answer"]
    if questions is None and answers is None:
        return []
    if not isinstance(questions, list):
        questions, answers = [questions], [answers]
    if not isinstance(answers, list) or len(questions) != len(answers):
        raise DamagedSample("question and answer are not lists of the same length")
    return [(text_field({"question": q}, "question"), _answers(a)) for q, a in zip(questions, answers, strict=True)]


def _answers(value: Any) -> list[str]:
    """A text, a list of texts, or a list of objects with `answer`, as in VQAv2."""
    found = value if isinstance(value, list) else [value]
    if not found:
        raise DamagedSample("no answer")
    return [text_field(answer if isinstance(answer, dict) else {"answer": answer}, "answer") for answer in found]
