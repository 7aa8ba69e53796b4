"""Small folders in the official layouts of COCO captions and VQAv2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.oracles.pictures import noise

PEOPLE = 10


def coco_folder(folder: Path, images: int = 4, split: str = "train", year: str = "2017") -> Path:
    """Two captions a picture, listed in another order than their ids."""
    (folder / "annotations").mkdir(parents=True)
    (folder / f"{split}{year}").mkdir()
    rows, captions = [], []
    for index in range(images):
        name = f"{index + 1:012d}.jpg"
        noise(40 + index, 30, seed=index).save(folder / f"{split}{year}" / name)
        rows.append({"id": index + 1, "file_name": name, "height": 30, "width": 40 + index})
        captions += [{"id": 100 * k + index, "image_id": index + 1, "caption": f"view {k} of {index}"} for k in (2, 1)]
    write_captions(folder, {"info": {}, "images": rows[::-1], "annotations": captions}, split, year)
    return folder


def captions_of(folder: Path, split: str = "train", year: str = "2017") -> dict[str, Any]:
    """The content of the captions file."""
    return json.loads((folder / "annotations" / f"captions_{split}{year}.json").read_text())


def write_captions(folder: Path, content: Any, split: str = "train", year: str = "2017") -> None:
    """Replace the captions file."""
    (folder / "annotations" / f"captions_{split}{year}.json").write_text(json.dumps(content))


def vqav2_folder(folder: Path, images: int = 3, split: str = "val") -> Path:
    """Two questions a picture; three of ten people say something else, with an article or a number word."""
    (folder / f"{split}2014").mkdir(parents=True)
    questions, annotations = [], []
    for image in range(1, images + 1):
        noise(32, 48, seed=image).save(folder / f"{split}2014" / f"COCO_{split}2014_{image:012d}.jpg")
        for k in (1, 0):
            number = image * 1000 + k
            said = [f"thing {k}"] * 7 + ["the thing", "2", "two"]
            answers = [
                {"answer": answer, "answer_confidence": "yes", "answer_id": i + 1} for i, answer in enumerate(said)
            ]
            questions.append({"question_id": number, "image_id": image, "question": f"what is it, {k}?"})
            annotations.append(
                {"question_id": number, "image_id": image, "multiple_choice_answer": said[0], "answers": answers}
            )
    write_vqav2(folder, questions, annotations, split)
    return folder


def write_vqav2(folder: Path, questions: list[Any], annotations: list[Any], split: str = "val") -> None:
    """Replace both files."""
    for name, rows in {
        "v2_OpenEnded_mscoco_{}2014_questions": questions,
        "v2_mscoco_{}2014_annotations": annotations,
    }.items():
        kind = name.rsplit("_", 1)[1]
        (folder / f"{name.format(split)}.json").write_text(json.dumps({"info": {}, kind: rows}))
