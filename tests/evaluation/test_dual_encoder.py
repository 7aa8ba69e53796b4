"""The dual encoder: its loss against a slow form, what it learns from real pictures, and the scores that it gives."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from data_pipelines.documents import Document, ImageSegment, TextSegment
from data_pipelines.failures import FailureLog
from unimodal.evaluation.dual_encoder import (
    DualEncoder,
    DualNetwork,
    cached_dual_encoder,
    contrastive,
    train_dual_encoder,
    word_ids,
)
from unimodal.evaluation.dual_scores import CaptionPool, dual_scores

COLOURS = {"red": (220, 20, 20), "green": (20, 180, 20), "blue": (30, 30, 220), "black": (10, 10, 10)}
SIDES = ("left", "right")


class Squares:
    """A square of a colour on one side of the picture."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.failures = count, seed, FailureLog()

    def fingerprint(self) -> str:
        return f"{self.count} {self.seed}"

    def documents(self) -> Iterator[Document]:
        random = Random(self.seed)
        for number in range(self.count):
            colour, side = random.choice(list(COLOURS)), random.choice(SIDES)
            segments = (
                ImageSegment(source=square(colour, side, random)),
                TextSegment(text=named(colour, side), role="caption"),
            )
            meta = {"layout": "sample", "source": "squares", "colour": colour, "side": side}
            yield Document(key=str(number), segments=segments, meta=meta)


def named(colour: str, side: str) -> str:
    return f"a {colour} square on the {side}"


def square(colour: str, side: str, random: Random) -> Image.Image:
    picture = Image.new("RGB", (48, 48), "white")
    x, y = random.randint(2, 8) + (24 if side == "right" else 0), random.randint(4, 28)
    ImageDraw.Draw(picture).rectangle((x, y, x + 12, y + 12), COLOURS[colour])
    return picture


class Table:
    """An encoder whose likeness is written down."""

    def __init__(self, likeness: dict[tuple[int, str], float]) -> None:
        self.values = likeness

    def likeness(self, pictures: Sequence[Image.Image], captions: Sequence[str]) -> Tensor:
        rows = [[self.values.get((picture.width, caption), 0.0) for caption in captions] for picture in pictures]
        return torch.tensor(rows)


def test_the_loss_is_that_of_a_loop_and_equal_captions_are_all_right() -> None:
    torch.manual_seed(0)
    network, images, texts = DualNetwork().eval(), torch.rand(4, 3, 64, 64), ["a dog", "a cat", "a dog", "two dogs"]
    found = contrastive(network, images, texts)
    products = network.log_scale.exp() * network.pictures(images) @ network.captions(texts).T
    total = 0.0
    for number, text in enumerate(texts):
        same = [other for other, its in enumerate(texts) if its == text]
        for row in (products[number], products[:, number]):
            total += sum(-F.log_softmax(row, 0)[other].item() for other in same) / len(same) / (2 * len(texts))
    assert found.item() == pytest.approx(total, rel=1e-5)


def test_words_and_their_order_make_the_ids_of_a_caption() -> None:
    assert word_ids("Red square") == word_ids("red, square") != word_ids("square red")
    assert len(word_ids("red square")) == 3 and word_ids("") == word_ids("") != [] and word_ids("!") != []


@pytest.mark.slow
def test_it_learns_to_find_captions_and_is_kept(tmp_path: Path) -> None:
    done = list[int]()
    encoder = train_dual_encoder(Squares(400, 0), progress=done.append, steps=80)
    held_out = Squares(60, 1)
    pool = CaptionPool.of(held_out)
    documents = [(d.segments[0], d.segments[1]) for d in held_out.documents()]
    captions = [text.text for _, text in documents if isinstance(text, TextSegment)]
    pictures = [image.open() for image, _ in documents if isinstance(image, ImageSegment)]
    scores = dual_scores(encoder, pool, captions, pictures)
    assert sum(done) == 80 and min(scores.values()) > 0.9, scores
    assert scores.keys() == {"caption_among_50", "colour_right", "side_right"}
    encoder.save(tmp_path)
    again = DualEncoder.load(tmp_path)
    assert torch.equal(again.likeness(pictures, captions), encoder.likeness(pictures, captions))
    kept = cached_dual_encoder(tmp_path, Squares(400, 0))
    assert torch.equal(kept.likeness(pictures, captions), encoder.likeness(pictures, captions))


def test_other_data_or_a_damaged_file_is_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unimodal.evaluation.dual_encoder.ENCODER_STEPS", 1)
    encoder = train_dual_encoder(Squares(200, 0), steps=1)
    encoder.save(tmp_path)
    monkeypatch.setattr(
        "unimodal.evaluation.dual_encoder.train_dual_encoder", lambda source, *_: train_dual_encoder(source, steps=1)
    )
    assert cached_dual_encoder(tmp_path, Squares(200, 5)).data_sha256 == "200 5"
    (tmp_path / "dual_encoder.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="cannot be read as a dual encoder"):
        DualEncoder.load(tmp_path)
    assert cached_dual_encoder(tmp_path, Squares(200, 5)).data_sha256 == "200 5"
    with pytest.raises(ValueError, match="takes 200 captioned pictures for training, there are 199"):
        train_dual_encoder(Squares(199, 0), steps=1)


def test_a_caption_is_right_where_it_is_the_likeliest_alone_and_a_missing_drawing_is_wrong() -> None:
    facts = {named(colour, side): {"colour": colour, "side": side} for colour in ("red", "blue") for side in SIDES}
    pool = CaptionPool(captions=tuple(facts), facts=facts)
    red_left, red_right, blue_left = named("red", "left"), named("red", "right"), named("blue", "left")
    sure = {(1, red_left): 0.9, (1, red_right): 0.5, (2, blue_left): 0.4, (2, red_left): 0.6, (3, red_left): 0.7}
    encoder = cast("DualEncoder", Table({**sure, (3, red_right): 0.7}))
    pictures = [Image.new("RGB", (width, 1)) for width in (1, 2, 3)]
    shown = dual_scores(encoder, pool, [red_left, blue_left, red_right, red_left], [*pictures, None])
    assert shown == {
        "caption_among_50": 1 / 4,  # the first; the second is taken for red, the third is level with another
        "colour_right": 2 / 4,  # of the first and of the third
        "side_right": 2 / 4,  # of the first two
    }
    assert dual_scores(encoder, pool, [red_left], [None], "_of_nothing")["caption_among_50_of_nothing"] == 0


def test_captions_to_compare_with_depend_on_the_caption_alone() -> None:
    pool = CaptionPool(captions=tuple(f"caption {number}" for number in range(200)))
    first = pool.among("caption 7")
    assert first == pool.among("caption 7") and first[0] == "caption 7" and len(set(first)) == 50
    assert set(first) != set(pool.among("caption 8")) and pool.alternatives("caption 7", "colour") == ["caption 7"]
    assert math.isclose(len(CaptionPool(captions=("a", "b")).among("a")), 2)
