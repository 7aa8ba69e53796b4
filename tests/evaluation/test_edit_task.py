"""Edits of real pictures, drawn by models of known scores: one that edits, one that copies, one that fails."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from data_pipelines.documents import Document, ImageSegment
from data_pipelines.failures import FailureLog
from data_pipelines.images import to_image, to_tensor
from data_pipelines.sources import open_source
from data_pipelines.sources.easy_vqa import EasyVQA
from data_pipelines.sources.easy_vqa_edits import PAINTS
from unimodal.cli import main
from unimodal.evaluation import run as run_module
from unimodal.evaluation.contract import Sampling
from unimodal.evaluation.judge import Judge, to_unit
from unimodal.evaluation.metrics.images import MAX_PSNR, masked_psnr
from unimodal.evaluation.run import EvaluationConfig, run
from unimodal.evaluation.tasks import edit

SCORES = {"accuracy", "colour", "shape", "copied", "psnr", "psnr_rest", "malformed", "known_answer_accuracy"}
SCORES |= {"ceiling_accuracy", "ceiling_psnr", "ceiling_psnr_rest"}


class PaintJudge:
    """Sees the colour of which most pixels are exactly, and the shape that it is told of pictures with that outline."""

    seed = 0
    data_sha256 = "e" * 64

    def __init__(self, shapes: dict[bytes, str]) -> None:
        self.shapes = shapes

    def predict(self, images: Tensor) -> list[tuple[str, str]]:
        return [self._verdict(np.asarray(to_image(image)).astype(int)) for image in images]

    def _verdict(self, pixels: np.ndarray) -> tuple[str, str]:
        area = {name: (pixels == paint).all(-1) for name, paint in PAINTS.items()}
        colour = max(area, key=lambda name: area[name].sum())
        return colour, self.shapes.get(area[colour].tobytes(), "nothing")


class Exact:
    """An image tokenizer that keeps all of a picture but for one step of blue."""

    image_size, codebook_size = 64, 256

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def encode(self, images: Tensor) -> Tensor:
        return ((images + 1) * 127.5).round().long().flatten(1)

    def decode(self, codes: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        images = codes.reshape(len(codes), 3, 64, 64).float()
        images[:, 2] = torch.where(images[:, 2] > 0, images[:, 2] - 1, images[:, 2])
        return to_unit(images)


@pytest.fixture(scope="module")
def source() -> EasyVQA:
    return EasyVQA(split="test", failures=FailureLog(), dialogues=0, edits=120)


@pytest.fixture(scope="module")
def documents(source: EasyVQA) -> list[Document]:
    return [document for document in source.documents() if document.meta.get("task") == "edit"]


@pytest.fixture(scope="module")
def judge(documents: list[Document]) -> Judge:
    shapes = {}
    for document in documents:
        if "shape" in document.meta:
            for part, colour in ((document.segments[0], "colour"), (document.segments[2], "target")):
                assert isinstance(part, ImageSegment)
                inside = (np.asarray(part.open()).astype(int) == PAINTS[document.meta[colour]]).all(-1)
                shapes[inside.tobytes()] = document.meta["shape"]
    return cast("Judge", PaintJudge(shapes))


@pytest.fixture
def answers(documents: list[Document]) -> dict[tuple[bytes, str], Image.Image]:
    """(shown picture, request) -> the known answer."""
    found = {}
    for document in documents:
        shown, request, answer = cast("tuple[Any, Any, Any]", document.segments)
        found[shown.open().tobytes(), request.text] = answer.open()
    return found


@pytest.fixture
def editor(make_model: Any, answers: dict[tuple[bytes, str], Image.Image]) -> Any:
    model = make_model(draw=lambda prompt, index: [answers[prompt[0].tobytes(), prompt[1]]])
    model.autoencoder = SimpleNamespace(encode=lambda images: images, decode=lambda latents: latents)
    model.preprocess = to_tensor
    return model


@pytest.fixture
def copier(editor: Any) -> Any:
    editor.draw = lambda prompt, index: [prompt[0]]
    return editor


@pytest.mark.slow
def test_a_model_that_draws_the_known_answer_has_every_score(editor: Any, source: EasyVQA, judge: Judge) -> None:
    told: list[tuple[str, int]] = []

    def reporter(description: str, total: int) -> Any:
        told.append((description, total))
        return lambda done: None

    result = edit.evaluate(editor, source, judge=judge, limit=100, reporter=reporter)
    assert result.n == 100 and told == [("edits", 100)]
    assert result.metrics.keys() == SCORES
    assert result.metrics["accuracy"] == result.metrics["colour"] == result.metrics["shape"] == 1
    assert result.metrics["known_answer_accuracy"] == 1
    assert result.metrics["copied"] == result.metrics["malformed"] == 0
    assert result.metrics["psnr"] == pytest.approx(MAX_PSNR, abs=0.01)
    assert result.metrics["psnr_rest"] == pytest.approx(MAX_PSNR, abs=0.01)
    (call,) = editor.calls
    assert call["mode"] == "image" and (call["temperature"], call["guidance"], call["seed"]) == (1.0, 2.0, 0)
    assert all(isinstance(shown, Image.Image) and isinstance(request, str) for shown, request in call["prompts"])


def test_a_model_that_draws_the_shown_picture_has_copied_all(copier: Any, source: EasyVQA, judge: Judge) -> None:
    metrics = edit.evaluate(copier, source, judge=judge, limit=100).metrics
    assert metrics["accuracy"] == metrics["colour"] == 0
    assert metrics["copied"] == metrics["shape"] == 1
    assert metrics["psnr_rest"] == pytest.approx(MAX_PSNR, abs=0.01) and metrics["psnr"] < 30


@pytest.mark.parametrize("broken", [[], ["words"], [Image.new("RGB", (64, 64)), "words"]])
def test_what_is_not_one_picture_is_malformed_wrong_and_worth_nothing(
    broken: list[Any], editor: Any, source: EasyVQA, judge: Judge
) -> None:
    right = editor.draw
    editor.draw = lambda prompt, index: right(prompt, index) if index % 4 else broken
    metrics = edit.evaluate(editor, source, judge=judge, limit=20).metrics
    assert metrics["malformed"] == 0.25 and metrics["accuracy"] == metrics["shape"] == 0.75
    assert metrics["psnr"] == metrics["psnr_rest"] == pytest.approx(0.75 * MAX_PSNR, abs=0.01)
    assert metrics["copied"] == 0
    editor.draw = lambda prompt, index: broken
    metrics = edit.evaluate(editor, source, judge=judge, limit=20).metrics
    assert metrics["malformed"] == 1 and metrics["accuracy"] == metrics["psnr"] == 0


def test_damage_inside_the_shape_and_outside_is_told_apart(editor: Any, source: EasyVQA, judge: Judge) -> None:
    right = editor.draw

    def spoil(inside: bool) -> Any:
        def draw(prompt: Any, index: int) -> list[Any]:
            (known,) = right(prompt, index)
            pixels, shown = np.asarray(known).copy(), np.asarray(prompt[0])
            changed = (pixels != shown).any(-1)
            pixels[changed if inside else ~changed] ^= 32
            return [Image.fromarray(pixels)]

        return draw

    editor.draw = spoil(inside=True)
    within = edit.evaluate(editor, source, judge=judge, limit=10).metrics
    editor.draw = spoil(inside=False)
    without = edit.evaluate(editor, source, judge=judge, limit=10).metrics
    expected = 20 * np.log10(255 / 32)
    assert within["psnr_rest"] == pytest.approx(MAX_PSNR, abs=0.01) and expected < within["psnr"] < 40
    assert without["psnr_rest"] == pytest.approx(expected, abs=0.01)


def test_masked_psnr_equals_a_count_by_hand() -> None:
    image, target = torch.zeros(3, 2, 2), torch.zeros(3, 2, 2)
    image[:, 0, 0], image[0, 1, 1] = 0.5, 1.0
    everywhere = torch.ones(2, 2, dtype=torch.bool)
    assert masked_psnr(image, target, everywhere) == pytest.approx(10 * np.log10(4 / ((3 * 0.25 + 1) / 12)), abs=1e-4)
    corner = torch.tensor([[True, False], [False, False]])
    assert masked_psnr(image, target, corner) == pytest.approx(10 * np.log10(4 / 0.25), abs=1e-4)
    assert masked_psnr(image, image, corner) == pytest.approx(MAX_PSNR, abs=0.01)
    assert masked_psnr(image, target, ~everywhere) == MAX_PSNR


def test_the_ceiling_is_the_known_answer_through_what_the_model_draws_with(
    editor: Any, source: EasyVQA, judge: Judge
) -> None:
    editor.image_tokenizer, editor.autoencoder = Exact(), None
    metrics = edit.evaluate(editor, source, judge=judge, limit=70).metrics
    assert metrics.keys() == SCORES
    assert metrics["accuracy"] == 1 and 0 < metrics["ceiling_accuracy"] < 1, "a step of blue is another paint"
    assert metrics["ceiling_psnr_rest"] == pytest.approx(20 * np.log10(255) + 10 * np.log10(3), abs=0.01)


def test_pictures_of_another_size_are_measured_at_that_of_the_answer(
    editor: Any, source: EasyVQA, judge: Judge
) -> None:
    right = editor.draw
    editor.draw = lambda prompt, index: [right(prompt, index)[0].resize((128, 128), Image.Resampling.NEAREST)]
    assert edit.evaluate(editor, source, judge=judge, limit=5).metrics["psnr"] > 25


@pytest.mark.slow
def test_only_edits_of_known_shape_are_drawn_and_the_limit_counts_these(
    editor: Any, source: EasyVQA, documents: list[Document], judge: Judge
) -> None:
    known = [document for document in documents if "shape" in document.meta]
    assert 100 < len(known) < len(documents) == 120
    assert edit.evaluate(editor, source, judge=judge).n == len(known)
    assert edit.evaluate(editor, source, judge=judge, limit=3).n == 3


def test_examples_hold_the_shown_the_drawn_and_the_known_picture(editor: Any, source: EasyVQA, judge: Judge) -> None:
    result = edit.evaluate(editor, source, judge=judge, limit=60)
    assert len(result.examples) == 24
    for example in result.examples:
        assert set(example.images) == {"shown", "drawn", "known"}
        assert example.right and example.answer == example.reference and example.prompt.split()[-1] in example.answer


def test_a_source_without_edits_is_one_readable_line(model: Any, judge: Judge) -> None:
    with pytest.raises(ValueError, match="no edits whose shape is known") as error:
        edit.evaluate(model, EasyVQA(split="test", failures=FailureLog(), dialogues=0), judge=judge)
    assert "\n" not in str(error.value)


def test_a_limit_below_one_is_refused(model: Any, source: EasyVQA, judge: Judge) -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        edit.evaluate(model, source, judge=judge, limit=0)


# -- the runner and the command


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch, judge: Judge) -> list[Path]:
    folders: list[Path] = []
    monkeypatch.setattr(run_module, "cached_judge", lambda folder, progress: folders.append(folder) or judge)
    return folders


@pytest.mark.slow
def test_the_runner_makes_the_same_edits_and_writes_the_results(
    copier: Any, runner: list[Path], documents: list[Document], tmp_path: Path
) -> None:
    config = EvaluationConfig(task="edit", source="easy_vqa", limit=30, sampling=Sampling(temperature=0.5, seed=4))
    content = run(copier, config, tmp_path / "edit.json", quiet=True)
    assert content["n"] == 30 and content["metrics"]["copied"] == 1
    asked = [request for _, request in copier.calls[0]["prompts"]]
    known = [document for document in documents if "shape" in document.meta][:30]
    assert asked == [cast("Any", document.segments[1]).text for document in known]
    assert runner == [tmp_path / "judge"]
    assert content["recipe"]["judge"]["seed"] == 0 and content["recipe"]["seed"] == 4
    assert content["command"].endswith("--limit 30 --temperature 0.5 --seed 4 --out " + str(tmp_path / "edit.json"))
    assert {"shown", "drawn", "known"} == set(content["examples"][0]["images"])


@pytest.mark.slow
def test_384_edits_are_drawn_unless_told_otherwise(copier: Any, runner: list[Path], tmp_path: Path) -> None:
    content = run(copier, EvaluationConfig(task="edit", source="easy_vqa"), tmp_path / "edit.json", quiet=True)
    assert content["n"] == 384
    options = {"edits": 10, "seed": 3}
    config = EvaluationConfig(task="edit", source="easy_vqa", source_options=options)
    content = run(copier, config, tmp_path / "edit.json", quiet=True)
    assert content["n"] <= 10 and "--option edits=10 --option seed=3" in content["command"]


def test_another_source_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "--model", "none", "--task", "edit", "--source", "imagefolder", "--out", str(tmp_path / "x")]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "known for easy_vqa alone, got source 'imagefolder'" in line


@pytest.mark.slow
def test_the_test_edits_are_spread_over_colours_and_shapes() -> None:
    source = open_source("easy_vqa", split="test", dialogues=0, edits=768)
    known = [d.meta for d in source.documents() if d.meta.get("task") == "edit" and "shape" in d.meta][:384]
    for name, least in (("target", 40), ("colour", 36), ("shape", 100)):
        assert min(Counter(meta[name] for meta in known).values()) >= least, name
