"""Edits of easy-VQA pictures: the answer is right to the pixel, the request is true, and all of it repeats."""

from __future__ import annotations

import itertools
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from data_pipelines.documents import DamagedSample, Document, ImageSegment, TextSegment
from data_pipelines.encoding import Encoder
from data_pipelines.failures import FailureLog
from data_pipelines.images import ImagePolicy, augment, to_image
from data_pipelines.sources.easy_vqa import NOT_COLOURED, NOT_FOUND, EasyVQA
from data_pipelines.sources.easy_vqa_deduction import COLOURS
from data_pipelines.sources.easy_vqa_edits import PAINTS, ColouredImage, plan_edits, recolour, shape_share
from data_pipelines.tokenize import make_token_space
from tests.oracles.pictures import tiny_tokenizer
from tokenizers_vq.text import TextTokenizer

FINGERPRINT = "38b6f7081ee06cb9af80b73b029b23250dd4c44765b60622f7f3622ae230ae38"
"""Of the official test split, as results files had it before there were edits."""


def open_edits(split: str = "test", edits: int = 16, **options: object) -> EasyVQA:
    return EasyVQA(split=split, failures=FailureLog(), dialogues=0, edits=edits, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def source() -> EasyVQA:
    return open_edits(edits=2000)


@pytest.fixture(scope="module")
def edits(source: EasyVQA) -> list[Document]:
    documents = list(source.documents())
    assert len(documents) == len(source)
    return [document for document in documents if document.meta.get("task") == "edit"]


def parts(document: Document) -> tuple[np.ndarray, str, np.ndarray]:
    shown, request, answer = document.segments
    assert isinstance(shown, ImageSegment) and isinstance(request, TextSegment) and isinstance(answer, ImageSegment)
    assert (shown.role, request.role, answer.role) == ("image", "request", "answer")
    return np.asarray(shown.open()).astype(int), request.text, np.asarray(answer.open()).astype(int)


def ground_of(pixels: np.ndarray) -> np.ndarray:
    colours, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    return colours[counts.argmax()]


def test_the_paints_are_the_colours_of_css_but_for_green() -> None:
    assert {name: ImageColor.getrgb("lime" if name == "green" else name) for name in COLOURS} == PAINTS


@pytest.mark.parametrize(("colour", "target"), itertools.permutations(COLOURS, 2))
def test_every_colour_becomes_every_other_to_the_pixel(source: EasyVQA, colour: str, target: str) -> None:
    for image in [image for image in source.editable if image.colour == colour][:6]:
        old = np.asarray(ImageSegment(source=image.path).open()).astype(int)
        new = np.asarray(recolour(Image.fromarray(old.astype(np.uint8)), colour, target)).astype(int)
        ground, inside = ground_of(old), (old == PAINTS[colour]).all(-1)
        outside = (old == ground).all(-1)
        assert inside.sum() >= 12 and (new[inside] == PAINTS[target]).all()
        assert outside.sum() > 2000 and (new[outside] == old[outside]).all()
        axis = np.array(PAINTS[colour]) - ground
        channel = np.abs(axis).argmax()
        share = (old - ground)[..., channel] / axis[channel]
        expected = ground + share[..., None] * (np.array(PAINTS[target]) - ground)
        assert np.abs(new - expected).max() <= 2.5, "the edge is the same mixture of the ground and the new colour"
        assert np.abs(np.asarray(recolour(Image.fromarray(new.astype(np.uint8)), target, colour)) - old).max() <= 2


@pytest.mark.slow
def test_an_edit_changes_the_shape_alone(edits: list[Document]) -> None:
    for document in edits[:300]:
        old, _, new = parts(document)
        colour, target = document.meta["colour"], document.meta["target"]
        assert colour != target
        changed = (old != new).any(-1)
        assert (new[(old == PAINTS[colour]).all(-1)] == PAINTS[target]).all()
        assert not changed[(old == ground_of(old)).all(-1)].any() and 0.002 < changed.mean() < 0.35


def test_requests_name_the_new_colour_and_nothing_that_is_not_there(edits: list[Document], source: EasyVQA) -> None:
    asked = Counter()
    for document in edits:
        words = parts(document)[1].split()
        meta = document.meta
        left = source.deduced[meta["image_id"]]
        assert left.colours == {meta["colour"]} and words[-1] == meta["target"]
        assert ("shape" in meta) == (len(left.shapes) == 1) and meta.get("shape", "none") in (*left.shapes, "none")
        assert set(words[:-1]) & set(COLOURS) <= {meta["colour"]}
        assert set(words) & {"circle", "rectangle", "triangle"} <= {meta.get("shape")}
        asked[" ".join(word for word in words if word not in (meta["colour"], meta["target"], meta.get("shape")))] += 1
    assert len(asked) == 7 and min(asked.values()) > 150


@pytest.mark.parametrize("number", [200, 922, 2000])
def test_edits_are_spread_over_pictures_and_colours(edits: list[Document], number: int) -> None:
    some = [document.meta for document in edits[:number]]
    pictures = Counter(meta["image_id"] for meta in some)
    assert max(pictures.values()) - min(pictures.values()) <= 1 and len(pictures) == min(number, 922)
    targets = Counter(meta["target"] for meta in some)
    assert max(targets.values()) - min(targets.values()) <= 8 + 0.03 * number
    pairs = Counter((meta["colour"], meta["target"]) for meta in some)
    assert len(pairs) == 8 * 7 and min(pairs.values()) >= 0.01 * number
    assert len({(meta["image_id"], meta["target"]) for meta in some}) == number, "no picture gets a colour again"


def test_after_seven_rounds_every_picture_had_every_other_colour_once() -> None:
    images = [ColouredImage(image_id=i, path=Path("x"), colour=COLOURS[i % 5], shape=None) for i in range(23)]
    plan = list(plan_edits(images, 7 * 23, random.Random(0)))
    for image in images:
        assert sorted(target for other, target in plan if other == image) == sorted({*COLOURS} - {image.colour})
    assert plan[:30] == list(plan_edits(images, 30, random.Random(0)))


@pytest.mark.slow
def test_edits_repeat_with_the_seed_and_change_with_it(edits: list[Document]) -> None:
    def read(seed: int) -> list[Document]:
        return list(open_edits(seed=seed).documents())[1000:]

    assert read(0) == edits[:16], "the first edits do not depend on how many there are"
    assert [document.meta for document in read(1)] != [document.meta for document in read(0)]
    assert len({document.key for document in edits}) == 2000 and edits[7].key == "test-edit-000007"


def test_without_edits_the_source_is_what_it_was() -> None:
    plain = EasyVQA(split="test", failures=FailureLog())
    both = EasyVQA(split="test", failures=FailureLog(), edits=3)
    assert plain.fingerprint() == both.fingerprint() == FINGERPRINT
    before, after = list(plain.documents()), list(both.documents())
    assert before == after[:-3] and len(before) == len(plain) == 1500
    assert NOT_COLOURED not in plain.notes and both.notes[NOT_COLOURED] == 78 and NOT_FOUND not in both.notes


@pytest.mark.slow
def test_a_picture_without_its_colour_is_left_out_and_counted(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(EasyVQA(split="test", failures=FailureLog()).folder.parent, tmp_path / "data"))
    editable = open_edits(path=folder).editable
    red, blue, broken, striped = [image.path for image in editable if image.colour in ("red", "blue")][:4]
    pixels = np.asarray(Image.open(red).convert("RGB"))
    Image.fromarray(pixels[..., ::-1]).save(red)
    Image.new("RGB", (64, 64), PAINTS["blue"]).save(blue)
    broken.write_bytes(b"no picture")
    pixels = np.asarray(Image.open(striped).convert("RGB")).copy()
    pixels[::8] -= 40
    Image.fromarray(pixels).save(striped)
    source = open_edits(path=folder)
    assert source.notes[NOT_FOUND] == 4 and len(source.editable) == len(editable) - 4
    assert not {red, blue, broken, striped} & {image.path for image in source.editable}


def test_a_shape_of_another_colour_is_not_recoloured(source: EasyVQA) -> None:
    image = next(image for image in source.editable if image.colour == "teal")
    with pytest.raises(DamagedSample, match="not one flat red shape"):
        shape_share(np.asarray(Image.open(image.path).convert("RGB")), "red")


@pytest.mark.parametrize("wrong", [-1, None, "many", 1.5])
def test_a_number_of_edits_that_is_none_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="edits must be a number, 0 or more"):
        open_edits(edits=wrong)  # type: ignore[arg-type]


# -- augmented copies


def encoder(seed: int = 0) -> Encoder:
    image = tiny_tokenizer(size=64)
    text = TextTokenizer.train(["make it red"], 270)
    return Encoder(
        text=text,
        image=image,
        space=make_token_space(text, image),
        policy=ImagePolicy(size=64),
        augmentations=("flip", "place"),
        seed=seed,
    )


def read(document: Document, copy: int) -> list[Image.Image]:
    found = encoder().read((document, copy))
    assert not isinstance(found, DamagedSample)
    return [to_image(picture.pixels) for picture in found.pictures]


def test_both_pictures_of_an_edit_are_augmented_alike(edits: list[Document]) -> None:
    moved = 0
    for document in edits[:20]:
        for copy in (1, 2):
            shown, answer = read(document, copy)
            moved += shown != read(document, 0)[0]
            old, new = np.asarray(shown).astype(int), np.asarray(answer).astype(int)
            far = np.abs(old - ground_of(old)).max(-1) <= 1
            assert far.mean() > 0.6 and np.abs(new - old)[far].max() <= 12, "nothing of the shape where none was"
            near = np.abs(old - PAINTS[document.meta["colour"]]).max(-1) == 0
            assert np.abs(new - PAINTS[document.meta["target"]])[near].max(initial=0) <= 12
    assert moved >= 38


@pytest.mark.slow
def test_pictures_of_other_documents_are_augmented_each_with_its_own_numbers(edits: list[Document]) -> None:
    picture = Image.open(next(iter(open_edits().images.values())))
    segments = (ImageSegment(source=picture), ImageSegment(source=picture, role="answer"))
    for meta, alike in (({"layout": "dialogue"}, False), ({"layout": "dialogue", "task": "edit"}, True)):
        first, second = read(Document(key="k", segments=segments, meta=meta), 1)
        assert (first == second) is alike
        for index, one in enumerate((first, second)):
            numbers = random.Random(f"0-k-1-{0 if alike else index}")
            assert one == augment(picture, ("flip", "place"), numbers)
