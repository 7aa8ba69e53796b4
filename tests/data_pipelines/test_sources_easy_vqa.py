"""easy-VQA: captions follow from the questions and answers alone, and dialogues are made of real parts."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from data_pipelines.documents import Document, ImageSegment, TextSegment
from data_pipelines.failures import FailureLog, TooMuchDamage
from data_pipelines.sources import open_source
from data_pipelines.sources.easy_vqa import COLOURS, CONTRADICTORY, NOT_SETTLED, SHAPES, UNKNOWN_FORM, EasyVQA, caption
from data_pipelines.sources.easy_vqa_deduction import PRESENCE_FORMS, deduce, known_claims, shape_questions
from tests.oracles.easy_vqa_worlds import consistent_worlds


@pytest.fixture(scope="module")
def official() -> dict[str, EasyVQA]:
    return {split: EasyVQA(split=split, failures=FailureLog()) for split in ("train", "test")}


@pytest.fixture
def small(official: dict[str, EasyVQA], tmp_path: Path) -> Path:
    """A folder with the first six images of each official split."""
    for split, source in official.items():
        (tmp_path / split / "images").mkdir(parents=True)
        for image_id in range(6):
            shutil.copy(source.images[image_id], tmp_path / split / "images")
        write_questions(tmp_path, split, {image_id: source.pairs[image_id] for image_id in range(6)})
    return tmp_path


def write_questions(folder: Path, split: str, pairs: dict[int, list[tuple[str, str]]]) -> None:
    rows = [[question, answer, image_id] for image_id, qa in pairs.items() for question, answer in qa]
    (folder / split / "questions.json").write_text(json.dumps(rows))


def texts(document: Document, role: str) -> list[str]:
    return [part.text for part in document.segments if isinstance(part, TextSegment) and part.role == role]


def test_every_question_of_the_data_set_has_a_known_form(official: dict[str, EasyVQA]) -> None:
    asked = {pair for source in official.values() for pairs in source.pairs.values() for pair in pairs}
    assert len({question for question, _ in asked}) == 107
    assert {question for question, _ in known_claims()} == {question for question, _ in asked}
    assert asked <= known_claims().keys()


@pytest.mark.parametrize("split", ["train", "test"])
def test_deduction_equals_trying_every_possible_picture(official: dict[str, EasyVQA], split: str) -> None:
    source = official[split]
    for image_id in source.ids[::8]:
        left = source.deduced[image_id]
        assert sorted(itertools.product(left.colours, left.shapes)) == consistent_worlds(source.pairs[image_id])


def test_deduction_equals_trying_every_picture_for_answers_drawn_at_random() -> None:
    rng, claims = random.Random(0), sorted(known_claims())
    for _ in range(300):
        pairs = rng.sample(claims, k=rng.randint(1, 4))
        left, unknown = deduce(pairs)
        assert unknown == 0
        assert sorted(itertools.product(left.colours, left.shapes)) == consistent_worlds(pairs)


def test_elimination_alone_settles_colour_and_shape() -> None:
    absent = [(f"is there a {colour} shape?", "no") for colour in COLOURS if colour != "teal"]
    absent += [(f"is no {shape} present?", "yes") for shape in SHAPES if shape != "circle"]
    assert deduce(absent)[0].settled == ("teal", "circle")
    assert deduce(absent[1:])[0].settled is None
    assert deduce([*absent, ("is a teal shape present?", "no")])[0].contradictory


@pytest.mark.parametrize("split", ["train", "test"])
def test_deduced_colour_is_the_colour_of_the_pixels(official: dict[str, EasyVQA], split: str) -> None:
    painted = {colour: np.array(ImageColor.getrgb("lime" if colour == "green" else colour)) for colour in COLOURS}
    for image in official[split].captioned[:100]:
        pixels = np.asarray(Image.open(image.path).convert("RGB"))
        area = {colour: int((pixels == value).all(-1).sum()) for colour, value in painted.items()}
        assert max(area, key=area.__getitem__) == image.caption.split()[1], image.image_id


def test_official_splits_are_whole_and_unsettled_images_are_counted(official: dict[str, EasyVQA]) -> None:
    for split, images, questions in (("train", 4000, 38575), ("test", 1000, 9673)):
        source = official[split]
        assert len(source) == images + images // 2
        assert sum(map(len, source.pairs.values())) == questions
        assert len(source.captioned) + source.notes[NOT_SETTLED] == images


def test_a_sample_holds_image_then_caption_then_questions_in_file_order(official: dict[str, EasyVQA]) -> None:
    source = official["train"]
    for document in itertools.islice(source.documents(), 40):
        image_id = document.meta["image_id"]
        assert document.key == f"train-{image_id:06d}"
        assert document.meta["layout"] == "sample"
        assert isinstance(document.segments[0], ImageSegment) and document.segments[0].open().size == (64, 64)
        asked = list(zip(texts(document, "question"), texts(document, "answer"), strict=True))
        assert asked == source.pairs[image_id]
        settled = "colour" in document.meta
        expected = [caption(document.meta["colour"], document.meta["shape"])] if settled else []
        assert texts(document, "caption") == expected


def test_more_questions_about_shapes_are_ones_of_the_data_set_with_right_answers(official: dict[str, EasyVQA]) -> None:
    source = EasyVQA(split="train", failures=FailureLog(), dialogues=0, shape_questions=4)
    more = 0
    for document in itertools.islice(source.documents(), 0, None, 20):
        image_id = document.meta["image_id"]
        asked = list(zip(texts(document, "question"), texts(document, "answer"), strict=True))
        own, made = source.pairs[image_id], asked[len(source.pairs[image_id]) :]
        assert asked[: len(own)] == own
        assert len(set(made)) == len(made) == (4 if len(source.deduced[image_id].shapes) == 1 else 0)
        assert set(made) <= known_claims().keys() and deduce([*own, *made])[0] == source.deduced[image_id]
        more += len(made)
    assert more > 700


def test_questions_about_shapes_ask_for_each_shape_alike_and_no_more_than_there_are() -> None:
    every = shape_questions("circle", 24, random.Random(0))
    assert len({question for question, _ in every}) == 24
    assert ("is there a circle?", "yes") in every and ("is no circle present?", "no") in every
    assert ("is there a triangle?", "no") in every and ("is no triangle present?", "yes") in every
    assert sum(answer == "yes" for _, answer in every) == len(PRESENCE_FORMS) // 2 * (1 + 2)
    with pytest.raises(ValueError, match="there are 24 yes-or-no questions about shapes, not 25"):
        shape_questions("circle", 25, random.Random(0))


def test_dialogues_are_real_answers_and_two_different_captions(official: dict[str, EasyVQA]) -> None:
    source = official["test"]
    forms = set()
    for document in itertools.islice(source.documents(), 1000, 1100):
        forms.add(document.meta["form"])
        captions, ids = document.meta["captions"], document.meta["image_ids"]
        assert document.meta["layout"] == "dialogue" and len(set(captions)) == len(captions)
        shown = [part.source for part in document.segments if isinstance(part, ImageSegment)]
        assert shown == [source.images[image_id] for image_id in ids]
        drawn = [part for part in document.segments if isinstance(part, ImageSegment) and part.role == "answer"]
        for request, described in zip(texts(document, "request"), captions[-len(drawn) :], strict=True):
            assert described in request
        for question in texts(document, "question"):
            answer = texts(document, "answer")[0]
            assert (question, answer) in source.pairs[ids[0]]
    assert forms == {"draw and describe", "draw, question, draw", "look, question, draw"}


def test_dialogues_repeat_with_the_seed_and_change_with_it(small: Path) -> None:
    def read(seed: int) -> list[Document]:
        source = open_source("easy_vqa", path=small, split="train", failures=FailureLog(), dialogues=5, seed=seed)
        return list(source.documents())

    assert read(1) == read(1)
    assert read(1)[:6] == read(2)[:6]
    assert read(1)[6:] != read(2)[6:]


def test_dialogues_default_to_half_the_images_and_can_be_none(small: Path) -> None:
    for dialogues, expected in ((None, 6 + 3), (0, 6), (10, 16)):
        source = EasyVQA(path=small, split="test", failures=FailureLog(), dialogues=dialogues)
        assert len(list(source.documents())) == len(source) == expected


def test_unknown_forms_and_contradictions_are_counted_and_get_no_caption(small: Path) -> None:
    pairs = {
        0: [("is it nice?", "yes"), ("what is the red shape?", "circle")],
        1: [("what is the red shape?", "circle"), ("is there a red shape?", "no")],
        2: [("is there a red shape?", "perhaps")],
    }
    write_questions(small, "train", pairs)
    source = EasyVQA(path=small, split="train", failures=FailureLog(), dialogues=0)
    assert source.notes == {UNKNOWN_FORM: 2, CONTRADICTORY: 1, NOT_SETTLED: 4}
    assert [texts(document, "caption") for document in source.documents()] == [["a red circle"], *[[]] * 5]


def test_a_missing_image_is_named_and_the_rest_goes_on(small: Path) -> None:
    (small / "train/images/3.png").unlink()
    failures = FailureLog(limit=0.5)
    documents = list(EasyVQA(path=small, split="train", failures=failures, dialogues=0).documents())
    assert [document.meta["image_id"] for document in documents] == [0, 1, 2, 4, 5]
    assert failures.good == 5 and failures.bad == [("easy_vqa train 3", "its image is missing")]
    with pytest.raises(TooMuchDamage):
        list(EasyVQA(path=small, split="train", failures=FailureLog(limit=0.1)).documents())


def test_fingerprint_follows_the_data_and_not_its_place(small: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    def fingerprint(path: Path, split: str = "train") -> str:
        return EasyVQA(path=path, split=split, failures=FailureLog()).fingerprint()

    moved = shutil.copytree(small, tmp_path_factory.mktemp("moved") / "data")
    assert fingerprint(moved) == fingerprint(small) != fingerprint(small, "test")
    (moved / "train/images/0.png").write_bytes(b"other")
    assert fingerprint(moved) != fingerprint(small)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "easyvqa"}, "unknown source 'easyvqa'; choose one of easy_vqa, imagefolder"),
        ({"name": "easy_vqa", "split": "val"}, "easy_vqa has no split 'val'; choose one of train, test"),
        ({"name": "easy_vqa", "colour": 1}, "no option 'colour'; its options are: dialogues, seed, edits"),
        ({"name": "easy_vqa", "dialogues": -1}, "dialogues must be a number, 0 or more, got -1"),
        ({"name": "easy_vqa", "shape_questions": -1}, "shape_questions must be a number, 0 or more, got -1"),
        ({"name": "easy_vqa", "edits": -1}, "edits must be a number, 0 or more, got -1"),
        ({"name": "easy_vqa", "path": Path("nowhere")}, "nowhere holds no train/questions.json"),
    ],
)
def test_what_cannot_be_opened_is_one_line_with_the_way_out(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        open_source(**{"split": "train", "failures": FailureLog(), **arguments})
    assert "\n" not in str(caught.value)


def test_captions_exist_only_for_what_the_data_set_holds() -> None:
    assert caption("teal", "triangle") == "a teal triangle"
    with pytest.raises(ValueError, match="got 'pink'"):
        caption("pink", "triangle")
