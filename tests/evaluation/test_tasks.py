"""The four tasks with a model whose right scores are known by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipelines.documents import Document, ImageSegment, TextSegment
from data_pipelines.images import to_tensor
from unimodal.evaluation.contract import GREEDY
from unimodal.evaluation.judge import Judge
from unimodal.evaluation.metrics.images import MAX_PSNR
from unimodal.evaluation.tasks import caption, reconstruction, t2i, vqa
from unimodal.generation.grammars import Choices


class FakeJudge:
    """Says `red circle` of every picture that is bright in red, else `blue rectangle`."""

    seed = 0
    data_sha256 = "e" * 64

    def predict(self, images: torch.Tensor) -> list[tuple[str, str]]:
        assert images.shape[1:] == (3, 64, 64)
        return [("red", "circle") if image[0].mean() > 0 else ("blue", "rectangle") for image in images]

    def accuracy_on(self, split: str) -> float:
        assert split == "test"
        return 0.99


def test_vqa_scores_are_those_counted_by_hand(model: Any, source: Any) -> None:
    result = vqa.evaluate(model, source, scoring=vqa.EASY_VQA)
    assert result.n == 5
    assert result.metrics["accuracy"] == pytest.approx(3 / 5)
    assert result.metrics["accuracy_colour"] == 1
    assert result.metrics["accuracy_yes_no"] == pytest.approx(1 / 2)
    assert result.metrics["accuracy_number"] == 0
    assert result.metrics["image_blind_accuracy"] == pytest.approx(1 / 5)
    assert result.metrics["majority_accuracy"] == pytest.approx(3 / 5)
    assert [example.right for example in result.examples] == [True, True, True, False, False]


def test_vqa_without_named_types_calls_colours_other(model: Any, source: Any) -> None:
    metrics = vqa.evaluate(model, source).metrics
    assert "accuracy_colour" not in metrics and metrics["accuracy_other"] == 1


def test_vqa_asks_all_questions_in_one_greedy_call_and_the_blind_ones_once_each(model: Any, source: Any) -> None:
    vqa.evaluate(model, source, sampling=replace(GREEDY, seed=7))
    seeing, blind = model.calls
    assert len(seeing["prompts"]) == 5 and len(blind["prompts"]) == 3
    assert seeing["temperature"] == 0 and seeing["seed"] == 7 and seeing["max_new_tokens"] == 8
    assert seeing["prompts"][0][0] is seeing["prompts"][1][0]
    assert len({id(prompt[0]) for prompt in blind["prompts"]}) == 1
    assert blind["prompts"][0][0].getpixel((0, 0)) == (85, 85, 85)  # red, green and blue, each picture once


def test_the_mean_picture_is_the_mean_of_all() -> None:
    mean = vqa.mean_picture([Image.new("RGB", (2, 2), paint) for paint in ("black", "white", "black", "white")])
    assert np.abs(np.asarray(mean, dtype=float) - 127.5).max() <= 0.5


def test_vqa_uses_all_ten_answers(model: Any, make_source: Any, make_sample: Any) -> None:
    answers = ["red"] * 2 + ["blue"] * 8
    source = make_source([make_sample("0", "red", pairs=[("what color is the shape?", *answers)])])
    assert vqa.evaluate(model, source).metrics["accuracy"] == pytest.approx(0.6)


def test_caption_scores_are_those_counted_by_hand(model: Any, source: Any) -> None:
    result = caption.evaluate(model, source)
    assert result.n == 3 and set(result.metrics) == {"exact_match", "bleu4", "rouge_l", "cider"}
    assert result.metrics["exact_match"] == pytest.approx(2 / 3)
    assert [example.answer for example in result.examples] == ["a red circle", "a blue circle", "a green circle"]
    assert result.recipe["bleu_orders"] == 3
    assert model.calls[0]["temperature"] == 0


@pytest.mark.parametrize("task", [vqa, caption, reconstruction])
def test_the_limit_counts_pictures(task: Any, model: Any, source: Any) -> None:
    full, limited = task.evaluate(model, source), task.evaluate(model, source, limit=2)
    assert limited.n < full.n
    assert len(limited.examples) == limited.n


@pytest.mark.parametrize(("task", "message"), [(vqa, "no questions"), (caption, "no captions")])
def test_a_source_without_what_the_task_needs_is_one_readable_line(
    task: Any, message: str, model: Any, make_source: Any, make_sample: Any
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        task.evaluate(model, make_source([make_sample("0", "red")]))
    assert "\n" not in str(error.value)


def test_t2i_draws_every_colour_and_shape_and_counts_what_the_judge_sees(make_model: Any, source: Any) -> None:
    model = make_model(free_spans=(4, 1))
    result = t2i.evaluate(model, source, judge=cast("Judge", FakeJudge()), seeds_per_prompt=2)
    assert result.n == 48
    assert result.metrics["accuracy"] == pytest.approx(1 / 24)
    assert result.metrics["colour"] == pytest.approx(1 / 8)
    assert result.metrics["shape"] == pytest.approx(1 / 3)
    assert result.metrics["judge_accuracy"] == 0.99
    assert result.metrics["malformed"] == 0
    assert result.metrics["malformed_free"] == pytest.approx(1 / 4)
    drawn, *checks = model.calls
    assert drawn["mode"] == "image" and [check["constrained"] for check in checks] == [True, False]
    assert all(len(check["prompts"]) == 96 for check in checks)
    assert sum(bool(example.right) for example in result.examples) == 2


@pytest.mark.parametrize("broken", [[], ["words"], [Image.new("RGB", (16, 16)), "words"]])
def test_t2i_counts_a_drawing_that_is_not_one_picture_as_malformed_and_wrong(
    broken: list[Any], make_model: Any, source: Any
) -> None:
    red = [Image.new("RGB", (16, 16), "red")]

    def draw(prompt: str, index: int) -> list[Any]:
        return broken if prompt == "a red circle" and index < 24 else red

    result = t2i.evaluate(make_model(draw=draw), source, judge=cast("Judge", FakeJudge()), seeds_per_prompt=2)
    assert result.metrics["malformed"] == pytest.approx(1 / (48 + 96))
    assert result.metrics["accuracy"] == pytest.approx(1 / 48)


def test_t2i_without_a_judge_draws_the_first_captions_and_keeps_the_pictures(model: Any, source: Any) -> None:
    result = t2i.evaluate(model, source, judge=None, limit=2)
    retrieved = {"retrieval": 0.5, "retrieval_of_real_pictures": 1.0, "retrieval_chance": 0.5}
    causes = {f"malformed_free_{cause}": 0.0 for cause in ("stray_text", "wrong_length", "no_end")}
    assert result.metrics == {**retrieved, "malformed": 0.0, "malformed_free": 0.0, **causes}
    assert model.calls[0]["prompts"] == ["a red circle", "a blue circle"]
    assert all("drawn" in example.images and example.right is None for example in result.examples)


def test_t2i_without_a_judge_and_captions_is_an_error(
    model: Any, make_source: Any, make_sample: Callable[..., Document]
) -> None:
    with pytest.raises(ValueError, match="no captions"):
        t2i.evaluate(model, make_source([make_sample("0", "red")]), judge=None)


def test_reconstruction_takes_every_distinct_picture_once(model: Any, make_source: Any, make_sample: Any) -> None:
    colours = ["red", "red", "black", "red"]
    source = make_source([make_sample(str(index), colour) for index, colour in enumerate(colours)])
    result = reconstruction.evaluate(model, source, batch_size=1)
    assert result.n == 2
    assert result.metrics["codebook_use"] == pytest.approx(2 / 4)
    assert result.metrics["perplexity"] == pytest.approx(2, rel=1e-5)
    red, black = 10 * math.log10(4 / (2 / 3 * 4)), 100 + 20 * math.log10(2)
    assert result.metrics["psnr"] == pytest.approx((red + black) / 2, rel=1e-4)
    assert {"original", "reconstruction"} == set(result.examples[0].images)


def test_reconstruction_tells_what_a_model_draws_with_apart_from_its_codes(model: Any, source: Any) -> None:
    """Codes again without a flow branch; with one, its autoencoder, which here keeps everything."""
    by_codes = reconstruction.evaluate(model, source).metrics
    assert (by_codes["drawn_psnr"], by_codes["drawn_ssim"]) == (by_codes["psnr"], by_codes["ssim"])
    model.autoencoder = SimpleNamespace(encode=lambda images: images, decode=lambda latents: latents)
    by_latents = reconstruction.evaluate(model, source).metrics
    assert by_latents["drawn_psnr"] == pytest.approx(MAX_PSNR, abs=0.01) and by_latents["psnr"] == by_codes["psnr"]


def test_reconstruction_takes_pictures_of_several_sizes(model: Any, make_source: Any) -> None:
    sides = [(24, 16), (16, 24), (16, 16), (24, 16), (16, 24)]
    pictures = [Image.new("RGB", pair, "white" if index < 4 else "black") for index, pair in enumerate(sides)]
    model.preprocess = to_tensor
    source = make_source(
        [Document(key=str(i), segments=(ImageSegment(source=picture),)) for i, picture in enumerate(pictures)]
    )
    result = reconstruction.evaluate(model, source)
    assert result.n == 4, "two of one colour and size are one picture, two of one colour are not"
    assert result.metrics["psnr"] == pytest.approx(100 + 20 * math.log10(2), rel=1e-4)
    assert {example.images["reconstruction"].size for example in result.examples} == set(sides)


@pytest.mark.parametrize("task", [vqa, caption, reconstruction])
def test_a_model_without_an_image_tokenizer_is_refused(task: Any, make_model: Any, source: Any) -> None:
    with pytest.raises(ValueError, match="no image tokenizer"):
        task.evaluate(make_model(image_tokenizer=None), source)


def test_documents_of_dialogues_are_passed_over(model: Any, make_source: Any) -> None:
    talk = Document(key="t", segments=(TextSegment(text="a red circle", role="caption"),), meta={"layout": "dialogue"})
    with pytest.raises(ValueError, match="no captions"):
        t2i.evaluate(model, make_source([talk]), judge=None)


def test_questions_with_choices_are_asked_under_a_grammar_and_the_recipe_says_so(model: Any, source: Any) -> None:
    result = vqa.evaluate(model, source, choices=["red", "blue"])
    assert [call["grammar"] for call in model.calls] == [Choices(["red", "blue"])] * 2
    assert result.recipe["choices"] == ["red", "blue"]
    assert vqa.evaluate(model, source).recipe["choices"] is None
    assert "grammar" not in model.calls[-1]


def test_an_item_that_cannot_be_scored_is_left_out_by_name(model: Any, make_source: Any, make_sample: Any) -> None:
    color, long = "what color is the shape?", "what " * 40
    bad = make_sample("bad", "red", caption="\U0001f600\U0001f389", pairs=[(long, "red"), (color, "?")])
    bad = replace(bad, meta={**bad.meta, "answers": [["red"] * 10, [" "] * 10]})
    sound = [make_sample(str(n), "red", caption="a red circle", pairs=[(color, "red")]) for n in range(19)]
    source = make_source([bad, *sound])
    source.failures.good = 20
    assert caption.evaluate(model, source).n == 19
    assert [name for name, _ in source.failures.bad] == ["bad"]
    source = make_source([bad, *sound])
    source.failures.good = 40
    assert vqa.evaluate(model, source).metrics["accuracy"] == 1
    assert sorted(reason for _, reason in source.failures.bad) == ["no answer to compare with", "too long"]
    assert all(name.startswith("bad, ") for name, _ in source.failures.bad)


def test_a_caption_too_long_to_draw_is_left_out_by_name(model: Any, make_source: Any, make_sample: Any) -> None:
    source = make_source([make_sample(str(n), "red", caption=f"{'word ' * 40 * (n == 3)}{n}") for n in range(20)])
    source.failures.good = 20
    assert t2i.evaluate(model, source, judge=None).n == 19
    assert [reason for _, reason in source.failures.bad] == ["too long"]
    with pytest.raises(ValueError, match=r"none of the first 1 captions can be drawn: too long"):
        t2i.evaluate(model, make_source([make_sample("0", "red", caption="word " * 40)]), judge=None)


def test_blind_answers_take_the_mean_picture_of_each_size(make_model: Any, make_source: Any) -> None:
    """Red pictures of two shapes and a black one of the first: the blind answer is asked once for each shape."""

    class Shaped(type(make_model())):
        def preprocess(self, image: Image.Image) -> torch.Tensor:
            return to_tensor(image.convert("RGB"))

    def shaped(key: str, paint: str, size: tuple[int, int]) -> Document:
        texts = (TextSegment(text="what color is the shape?", role="question"), TextSegment(text="red", role="answer"))
        picture = ImageSegment(source=Image.new("RGB", size, paint))
        return Document(key=key, segments=(picture, *texts), meta={"layout": "sample"})

    model = Shaped()
    source = make_source([shaped("0", "red", (8, 4)), shaped("1", "black", (8, 4)), shaped("2", "red", (4, 8))])
    metrics = vqa.evaluate(model, source).metrics
    blind = [prompt[0] for prompt in model.calls[-1]["prompts"]]
    assert [(image.size, image.getpixel((0, 0))) for image in blind] == [((8, 4), (128, 0, 0)), ((4, 8), (255, 0, 0))]
    assert metrics["accuracy"] == pytest.approx(2 / 3) and metrics["image_blind_accuracy"] == pytest.approx(1 / 3)
