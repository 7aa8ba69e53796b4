"""easy-VQA (the PyPI package easy-vqa, MIT): 64x64 pictures of one coloured shape, with questions and answers.

The package holds no captions. They are deduced from the questions and answers alone; pictures whose questions do
not settle both colour and shape get none, and are counted in the notes.
"""

from __future__ import annotations

import importlib.resources
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from data_pipelines.documents import DamagedSample, Document, ImageSegment, Segment, TextSegment
from data_pipelines.failures import FailureLog
from data_pipelines.sources.easy_vqa_deduction import (
    COLOURS,
    SHAPES,
    Candidates,
    QuestionAnswer,
    deduce,
    shape_questions,
)
from data_pipelines.sources.easy_vqa_dialogues import CaptionedImage, make_dialogue
from data_pipelines.sources.easy_vqa_edits import ColouredImage, can_edit, make_edit, plan_edits
from data_pipelines.sources.easy_vqa_riddles import make_riddle
from data_pipelines.sources.source import fingerprint_files

__all__ = ["COLOURS", "SHAPES", "SPLITS", "EasyVQA", "caption"]

SPLITS = ("train", "test")

NOT_SETTLED = "captions skipped: colour and shape not settled"
CONTRADICTORY = "captions skipped: answers contradict each other"
UNKNOWN_FORM = "questions of an unknown form, not used for captions"
NOT_COLOURED = "pictures not edited: colour not settled"
NOT_FOUND = "pictures not edited: colour not found in the picture"


def caption(colour: str, shape: str) -> str:
    """The caption of a picture: `a teal triangle`. Raises ValueError for what the data set does not hold."""
    if colour not in COLOURS or shape not in SHAPES:
        raise ValueError(f"easy_vqa has the colours {COLOURS} and the shapes {SHAPES}, got {colour!r} and {shape!r}")
    return f"a {colour} {shape}"


class EasyVQA:
    """One sample document for each image, then `dialogues` made from the captioned images, `edits` and `riddles`.

    path: a folder laid out like the package's own `data`; the installed package when None.
    dialogues: how many; half as many as images when None. The same `seed` gives the same dialogues, edits and riddles.
    edits: how many recoloured pictures, spread evenly over the images of settled colour and over the new colours.
    riddles: how many requests that are solved in words before they are drawn, over the captioned images in turn.
    shape_questions: how many more yes-or-no questions about the shape of every image whose shape is settled, in the
    data set's own words and with deduced answers; it asks 2.7 times as often about colours.
    Raises ValueError for a split or a folder that is not there.
    """

    def __init__(
        self,
        *,
        path: Path | None = None,
        split: str,
        failures: FailureLog,
        dialogues: int | None = None,
        seed: int = 0,
        edits: int = 0,
        riddles: int = 0,
        shape_questions: int = 0,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"easy_vqa has no split {split!r}; choose one of {', '.join(SPLITS)}")
        counts = {"dialogues": 0 if dialogues is None else dialogues, "edits": edits, "riddles": riddles}
        counts["shape_questions"] = shape_questions
        for name, number in counts.items():
            if not isinstance(number, int) or number < 0:
                raise ValueError(f"{name} must be a number, 0 or more, got {number!r}")
        self.split, self.failures, self.seed, self.shape_questions = split, failures, seed, shape_questions
        self.folder = _data_folder(path) / split
        self.pairs = _read_questions(self.folder / "questions.json")
        self.images = {int(file.stem): file for file in self.folder.glob("images/*.png") if file.stem.isdecimal()}
        self.ids = sorted(self.images.keys() | self.pairs.keys())
        self.notes: dict[str, int] = {}
        self.deduced = self._deduce()
        self.captioned = list(self._captioned())
        self.num_dialogues = self._affordable_dialogues(len(self.ids) // 2 if dialogues is None else dialogues)
        self.editable = self._editable() if edits else []
        self.num_edits = edits if self.editable else 0
        self.num_riddles = riddles if self.captioned else 0

    def __len__(self) -> int:
        return len(self.ids) + self.num_dialogues + self.num_edits + self.num_riddles

    def fingerprint(self) -> str:
        """SHA-256 over the split's questions and its images' names and sizes."""
        questions = self.folder / "questions.json"
        return fingerprint_files(self.folder, whole=[questions], listed=self.images.values())

    def documents(self) -> Iterator[Document]:
        """Samples in the order of their ids, dialogues, edits, riddles. Raises TooMuchDamage past the failure limit."""
        for image_id in self.ids:
            try:
                document = self._sample(image_id)
            except DamagedSample as error:
                self.failures.drop(f"easy_vqa {self.split} {image_id}", str(error))
            else:
                self.failures.keep()
                yield document
        self.failures.close()
        for index in range(self.num_dialogues):
            yield self._dialogue(index)
        plan = plan_edits(self.editable, self.num_edits, random.Random(f"easy_vqa {self.split} {self.seed} edits"))
        for index, (image, target) in enumerate(plan):
            yield self._edit(index, image, target)
        for index in range(self.num_riddles):
            yield self._riddle(index, self.captioned[index % len(self.captioned)])

    def _deduce(self) -> dict[int, Candidates]:
        """Colours and shapes left for each image; fills the notes."""
        deduced, notes = {}, Counter({NOT_SETTLED: 0})
        for image_id in self.ids:
            candidates, unknown = deduce(self.pairs.get(image_id, ()))
            notes[UNKNOWN_FORM] += unknown
            notes[CONTRADICTORY] += candidates.contradictory
            notes[NOT_SETTLED] += not candidates.contradictory and candidates.settled is None
            deduced[image_id] = candidates
        self.notes = {name: count for name, count in notes.items() if count or name == NOT_SETTLED}
        return deduced

    def _captioned(self) -> Iterator[CaptionedImage]:
        for image_id, path in sorted(self.images.items()):
            if settled := self.deduced[image_id].settled:
                pairs = tuple(self.pairs[image_id])
                yield CaptionedImage(image_id=image_id, path=path, caption=caption(*settled), pairs=pairs)

    def _affordable_dialogues(self, wanted: int) -> int:
        """`wanted`, or none with a note when there are not two different captions to talk about."""
        if wanted and len({image.caption for image in self.captioned}) < 2:
            self.notes["dialogues skipped: fewer than two different captions"] = wanted
            return 0
        return wanted

    def _editable(self) -> list[ColouredImage]:
        """Images of settled colour that have it in their picture; those that have not are counted in the notes."""
        found = []
        for image_id, path in sorted(self.images.items()):
            left = self.deduced[image_id]
            if len(left.colours) == 1 and left.shapes:
                shape = next(iter(left.shapes)) if len(left.shapes) == 1 else None
                found.append(ColouredImage(image_id=image_id, path=path, colour=next(iter(left.colours)), shape=shape))
        editable = [image for image in found if can_edit(image)]
        counts = {NOT_COLOURED: len(self.images) - len(found), NOT_FOUND: len(found) - len(editable)}
        self.notes |= {name: count for name, count in counts.items() if count}
        return editable

    def _sample(self, image_id: int) -> Document:
        """Image, caption if settled, then questions and answers in file order, then those about its shape."""
        if image_id not in self.images:
            raise DamagedSample("its image is missing")
        segments: list[Segment] = [ImageSegment(source=self.images[image_id])]
        meta = {"layout": "sample", "source": "easy_vqa", "split": self.split, "image_id": image_id}
        if settled := self.deduced[image_id].settled:
            segments.append(TextSegment(text=caption(*settled), role="caption"))
            meta |= dict(zip(("colour", "shape"), settled, strict=True))
        for question, answer in (*self.pairs.get(image_id, ()), *self._about_shape(image_id)):
            segments += [TextSegment(text=question, role="question"), TextSegment(text=answer, role="answer")]
        return Document(key=f"{self.split}-{image_id:06d}", segments=tuple(segments), meta=meta)

    def _about_shape(self, image_id: int) -> list[QuestionAnswer]:
        shapes = self.deduced[image_id].shapes
        if not self.shape_questions or len(shapes) != 1:
            return []
        rng = random.Random(f"easy_vqa {self.split} {self.seed} shape {image_id}")
        return shape_questions(next(iter(shapes)), self.shape_questions, rng)

    def _dialogue(self, index: int) -> Document:
        rng = random.Random(f"easy_vqa {self.split} {self.seed} {index}")
        dialogue = make_dialogue(self.captioned, rng)
        meta = {
            "layout": "dialogue",
            "source": "easy_vqa",
            "split": self.split,
            "form": dialogue.form,
            "image_ids": [image.image_id for image in dialogue.images],
            "captions": [image.caption for image in dialogue.images],
        }
        return Document(key=f"{self.split}-dialogue-{index:06d}", segments=dialogue.segments, meta=meta)

    def _edit(self, index: int, image: ColouredImage, target: str) -> Document:
        segments = make_edit(image, target, random.Random(f"easy_vqa {self.split} {self.seed} edit {index}"))
        meta = {"layout": "dialogue", "task": "edit", "source": "easy_vqa", "split": self.split}
        meta |= {"image_id": image.image_id, "colour": image.colour, "target": target}
        meta |= {"shape": image.shape} if image.shape else {}
        return Document(key=f"{self.split}-edit-{index:06d}", segments=segments, meta=meta)

    def _riddle(self, index: int, image: CaptionedImage) -> Document:
        settled = self.deduced[image.image_id].settled
        assert settled is not None
        rng = random.Random(f"easy_vqa {self.split} {self.seed} riddle {index}")
        segments = make_riddle(image.path, *settled, image.caption, rng)
        meta = {"layout": "dialogue", "task": "riddle", "source": "easy_vqa", "split": self.split}
        meta |= {"image_id": image.image_id} | dict(zip(("colour", "shape"), settled, strict=True))
        return Document(key=f"{self.split}-riddle-{index:06d}", segments=segments, meta=meta)


def _data_folder(path: Path | None) -> Path:
    """The folder that holds the splits."""
    if path is None:
        return Path(str(importlib.resources.files("easy_vqa") / "data"))
    if not all((path / split / "questions.json").is_file() for split in SPLITS):
        raise ValueError(
            f"{path} holds no train/questions.json and test/questions.json; leave the path out to read the package"
        )
    return path


def _read_questions(file: Path) -> dict[int, list[QuestionAnswer]]:
    """Image id -> its (question, answer) pairs in file order."""
    pairs: defaultdict[int, list[QuestionAnswer]] = defaultdict(list)
    try:
        for question, answer, image_id in json.loads(file.read_text(encoding="utf-8")):
            pairs[int(image_id)].append((str(question), str(answer)))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} is not a JSON list of [question, answer, image id]: {error}") from error
    return dict(pairs)
