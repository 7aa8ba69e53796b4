"""The pipeline: text and pictures in, text and pictures out, and a bundle that keeps its parts together."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import unimodal
from tests.oracles.passes import logits
from tests.oracles.tiny import (
    IMAGE_SIZE,
    tiny_bundle,
    tiny_flow_pipeline,
    tiny_image_tokenizer,
    tiny_picture,
    tiny_pipeline,
)
from tokenizers_vq.bundle_files import IMAGE_TOKENIZER, TEXT_TOKENIZER
from tokenizers_vq.text import TextTokenizer
from unimodal.generation import forward
from unimodal.generation.grammars import Choices
from unimodal.generation.pipeline import Pipeline, load


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return tiny_pipeline()


def plain(answers: Sequence[list[Any]]) -> list[list[Any]]:
    """Answers that can be compared: pictures as bytes."""
    return [[part.tobytes() if isinstance(part, Image.Image) else part for part in answer] for answer in answers]


def test_text_mode_writes_and_image_mode_draws_exactly_one_picture(pipeline: Pipeline) -> None:
    prompts = ["a red circle", [tiny_picture(0), "what color is it?"]]
    written = pipeline.generate(prompts, mode="text", max_new_tokens=12)
    assert len(written) == 2 and all(isinstance(part, str) for answer in written for part in answer)
    for answer in pipeline.generate(prompts, mode="image", guidance=2.0):
        [picture] = answer
        assert isinstance(picture, Image.Image) and picture.size == (IMAGE_SIZE, IMAGE_SIZE)


def test_mixed_mode_answers_with_text_and_pictures(pipeline: Pipeline) -> None:
    answers = pipeline.generate(["a red circle"] * 30, mode="mixed", max_new_tokens=30)
    kinds = {type(part).__name__ for answer in answers for part in answer}
    assert kinds == {"str", "Image"}


def test_the_seed_decides_and_prompt_i_uses_seed_plus_i(pipeline: Pipeline) -> None:
    many = plain(pipeline.generate(["a red circle"] * 4, seed=5, max_new_tokens=20))
    assert many == plain(pipeline.generate(["a red circle"] * 4, seed=5, max_new_tokens=20))
    assert many != plain(pipeline.generate(["a red circle"] * 4, seed=50, max_new_tokens=20))
    assert many[2:] == plain(pipeline.generate(["a red circle"] * 2, seed=7, max_new_tokens=20))


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_answers_do_not_depend_on_the_batch_size_and_keep_the_order_of_the_prompts(
    pipeline: Pipeline, batch_size: int
) -> None:
    prompts = ["a red circle and a blue square", "red", [tiny_picture(3)], "is there a red square?", "no"]
    done: list[int] = []
    answers = pipeline.generate(prompts, max_new_tokens=20, batch_size=batch_size, progress=done.append)
    assert plain(answers) == plain(pipeline.generate(prompts, max_new_tokens=20))
    assert sum(done) == len(prompts) and max(done) <= batch_size


def test_no_prompts_have_no_answers(pipeline: Pipeline) -> None:
    assert pipeline.generate([]) == []


def test_a_picture_of_any_size_and_mode_is_taken(pipeline: Pipeline) -> None:
    pictures = [Image.new("RGBA", (40, 9), (255, 0, 0, 128)), Image.new("L", (3, 70), 200), Image.new("CMYK", (16, 16))]
    for picture in pictures:
        assert pipeline.preprocess(picture).shape == (3, IMAGE_SIZE, IMAGE_SIZE)
    assert len(pipeline.generate([[picture, "yes"] for picture in pictures], mode="text", max_new_tokens=2)) == 3


@pytest.mark.parametrize(
    ("prompts", "settings", "reason"),
    [
        (["a"], {"mode": "video"}, "text, image, mixed, got 'video'"),
        (["a"], {"temperature": -1.0}, "temperature"),
        (["a"], {"top_p": 0.0}, "top_p"),
        (["a"], {"top_k": -2}, "top_k"),
        (["a"], {"guidance": -1.0}, "guidance"),
        (["a"], {"max_new_tokens": 0}, "max_new_tokens"),
        (["a"], {"stream": True, "top_k": -1}, "top_k"),
        (["a"], {"aspect_ratio": 2.0}, "draws 2x2 codes and no other size"),
        (["a"], {"mode": "image", "grammar": Choices(["no"])}, "a grammar rules text"),
        ("a", {}, r"\[prompt\]"),
        (None, {}, "prompts is a list of prompts"),
        ([None], {}, "a prompt is a string, or a list of strings and pictures, got NoneType"),
        ([tiny_picture(0)], {}, "got Image"),
        (["\ud800"], {}, "no text in UTF-8"),
        (["a"], {"seed": 2**64}, "a seed is a whole number"),
        (["what " * 100], {}, "does not fit a context of 64"),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_one_line(
    pipeline: Pipeline, prompts: Any, settings: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason) as error:
        pipeline.generate(prompts, **settings)
    assert "\n" not in str(error.value)


def test_a_model_without_an_image_tokenizer_takes_and_gives_text_alone() -> None:
    blind = tiny_pipeline(with_images=False)
    [answer] = blind.generate(["a red circle"], mode="text", max_new_tokens=5)
    assert all(isinstance(part, str) for part in answer)
    for mode in ("image", "mixed"):
        with pytest.raises(ValueError, match="no image tokenizer"):
            blind.generate(["a"], mode=mode)
    with pytest.raises(ValueError, match="no image tokenizer"):
        blind.generate([[tiny_picture(0)]], mode="text")


def test_logits_are_those_of_the_model_and_other_shapes_are_refused(pipeline: Pipeline) -> None:
    ids = torch.randint(pipeline.token_space.vocab_size, (2, 9))
    with torch.no_grad():
        assert torch.equal(pipeline.logits(ids), logits(pipeline.model, ids))
    for wrong in (ids[0], torch.zeros(1, 65, dtype=torch.int64)):
        with pytest.raises(ValueError, match="up to 64"):
            pipeline.logits(wrong)


def test_a_loaded_bundle_gives_the_answers_of_the_one_that_was_saved(pipeline: Pipeline, tmp_path: Path) -> None:
    pipeline.save(tmp_path / "model")
    loaded = unimodal.load(tmp_path / "model")
    prompts = ["a red circle", [tiny_picture(1), "is it red?"], "blue"]
    settings: dict[str, Any] = {"guidance": 2.0, "max_new_tokens": 25, "seed": 3}
    assert plain(loaded.generate(prompts, **settings)) == plain(pipeline.generate(prompts, **settings))
    assert loaded.token_space == pipeline.token_space
    assert len(loaded.sha256) == 64 and pipeline.sha256 == ""


def test_a_bundle_whose_tokenizers_were_swapped_is_refused(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "model")
    tiny_image_tokenizer(seed=1).save(bundle / IMAGE_TOKENIZER)
    with pytest.raises(ValueError, match="the image tokenizer is not the one of its token space"):
        unimodal.load(bundle)
    bundle = tiny_bundle(tmp_path / "other")
    TextTokenizer.train(["other words entirely, and many of them"], 300).save(bundle / TEXT_TOKENIZER)
    with pytest.raises(ValueError, match="the text tokenizer is not the one of its token space"):
        unimodal.load(bundle)


def test_a_bundle_without_its_text_tokenizer_or_not_there_is_refused_in_one_line(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "model")
    shutil.rmtree(bundle / TEXT_TOKENIZER)
    for path, reason in ((bundle, "text_tokenizer"), (tmp_path / "nothing", "is not a folder")):
        with pytest.raises(ValueError, match=reason) as error:
            unimodal.load(path)
        assert "\n" not in str(error.value)


def test_compiled_steps_are_those_of_the_machine(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline.save(tmp_path)
    monkeypatch.setattr(forward, "can_build_for_cpu", lambda: True)
    compiled, apart = load(tmp_path, compile=True), load(tmp_path, compile=True, packed=False)
    assert isinstance(compiled.engine.forward, forward.MatvecForward)
    assert isinstance(apart.engine.forward, forward.MatvecForward)
    assert apart.engine.forward.many.model is apart.model
    monkeypatch.setattr(forward, "can_build_for_cpu", lambda: False)
    without = load(tmp_path, compile=True)
    assert isinstance(without.engine.forward, forward.EagerForward)
    assert "no working C++ compiler" in caplog.text
    assert plain(without.generate(["a"], seed=3)) == plain(load(tmp_path).generate(["a"], seed=3))


@pytest.mark.slow
def test_compiled_steps_answer_as_others_with_the_flow_branch(tmp_path: Path) -> None:
    """Text and images of mixed answers; traced only where there is no compiler."""
    pipeline = tiny_flow_pipeline()
    pipeline.bundle.save(tmp_path)
    settings: dict[str, Any] = {"mode": "mixed", "max_new_tokens": 24, "steps": 2}
    wanted = pipeline.generate(["a red circle"], **settings)
    assert [a.ids for a in load(tmp_path, compile=True).generate(["a red circle"], **settings)] == [
        a.ids for a in wanted
    ]


def test_prepacked_weights_score_as_plain_ones_do() -> None:
    pipeline = tiny_pipeline()
    plain = pipeline.log_likelihoods(["a red circle", "what color is it?"], ["yes", "a blue square"])
    pipeline.use_prepacked_weights()
    assert pipeline.log_likelihoods(["a red circle", "what color is it?"], ["yes", "a blue square"]) == pytest.approx(
        plain, abs=1e-4
    )
