"""Answers of a model that sees pictures through a ViT: text and drawings, alone and in batches."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipelines.batch import collate
from data_pipelines.images import join_patches
from data_pipelines.outline import Outline
from tests.oracles.pictures import noise
from tests.oracles.tiny import tiny_flow_pipeline
from unimodal.generation.batch import Batch
from unimodal.generation.batch_media import media_tokens
from unimodal.generation.context import Context, read_prompt
from unimodal.generation.flow_sampling import FlowSamplingConfig
from unimodal.generation.pipeline import Pipeline, load
from unimodal.generation.reading import read
from unimodal.model.cache import KVCache
from unimodal.model.masks import dense_mask

FEW = FlowSamplingConfig(steps=3)
PICTURES = [noise(16, 16, seed=0), noise(24, 12, seed=1), noise(9, 30, seed=2)]
PROMPTS: list[Any] = [
    "a red circle",
    [PICTURES[0], "make it blue"],
    ["a", PICTURES[1], "b", PICTURES[2]],
    ["a red circle", [PICTURES[1], "yes"], "now a blue one"],
]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return tiny_flow_pipeline(vit=True)


@pytest.mark.parametrize("mode", ["text", "image", "mixed"])
def test_a_batch_answers_as_each_prompt_alone(pipeline: Pipeline, mode: Any) -> None:
    settings = {"mode": mode, "flow": FEW, "max_new_tokens": 30}
    together = pipeline.generate(PROMPTS, seed=7, **settings)
    alone = [pipeline.generate([prompt], seed=7 + i, **settings)[0] for i, prompt in enumerate(PROMPTS)]
    assert [a.ids for a in together] == [a.ids for a in alone]
    if mode == "text":
        assert all(isinstance(part, str) for answer in together for part in answer)
        assert pipeline.token_space.specials.boi not in [token for answer in together for token in answer.ids]


def read_logits(pipeline: Pipeline, contexts: list[Context]) -> torch.Tensor:
    """Logits (B, V) of what comes after each context, read into one cache."""
    model, lengths = pipeline.model, torch.tensor([len(context) for context in contexts])
    cache = KVCache(model.config.trunk, len(contexts), int(lengths.max()), model.dtype)
    features = read(model, cache, [c.piece() for c in contexts], pipeline.token_space.specials.pad)
    return model.token_head(features[torch.arange(len(contexts)), lengths - 1]).float()


@pytest.mark.parametrize("mode", ["text", "mixed"])
def test_the_cache_gives_the_logits_of_the_whole_sequence(pipeline: Pipeline, mode: Any) -> None:
    requests = pipeline.requests(PROMPTS, pipeline.decode_config(mode))
    contexts = [read_prompt(r, pipeline.token_space, pipeline.reading) for r in requests]
    model, space = pipeline.model, pipeline.token_space
    with torch.inference_mode():
        found = read_logits(pipeline, contexts)
        for row, context in enumerate(contexts):
            sequence = Outline((), (tuple(context.runs),)).build()
            batch = collate([[sequence]], len(sequence), space)
            mask = dense_mask(batch.documents, batch.branches, batch.spans)
            features = model(
                batch.tokens, batch.positions, mask, media={name: media_tokens(p) for name, p in batch.media.items()}
            )
            torch.testing.assert_close(found[row], model.token_head(features[0, -1]), rtol=1e-4, atol=1e-4)


def test_pictures_are_seen_in_their_own_shape_and_their_codes_are_not_read(pipeline: Pipeline) -> None:
    (request,) = pipeline.requests([PROMPTS[2]], pipeline.decode_config("mixed"))
    assert [pixels.shape for pixels in request.pixels] == [(12, 20, 3), (28, 8, 3)], "of 24x12 and 9x30 pixels"
    space = pipeline.token_space
    context = read_prompt(request, space, pipeline.reading)
    assert [run.media.name for run in context.runs if run.media] == ["latents", "patches"] * 2
    codes = {token for run in context.runs for token in run.ids.tolist() if token >= space.image_offset}
    assert codes == set()
    with torch.inference_mode():
        plain = read_logits(pipeline, [context])
        other = dataclasses.replace(request, pixels=[255 - request.pixels[0], *request.pixels[1:]])
        changed = read_prompt(other, space, pipeline.reading)
        assert (read_logits(pipeline, [changed]) - plain).abs().max() > 1e-3


def test_what_was_drawn_is_seen_through_the_vit(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    real = Batch.insert
    monkeypatch.setattr(Batch, "insert", lambda self, painted: (shown.extend(painted.values()), real(self, painted))[1])
    for seed in range(12):
        shown.clear()
        (answer,) = pipeline.generate(["a red circle"], mode="mixed", flow=FEW, max_new_tokens=60, seed=seed)
        drawn = [part for part in answer if isinstance(part, Image.Image)]
        for image, picture in zip(shown, drawn, strict=True):
            latents, seen = image.image.runs(pipeline.token_space)
            assert (latents.media.name, seen.media.name) == ("latents", "patches")
            pixels = join_patches(seen.media.values, 4).astype(int)
            assert np.abs(pixels - np.asarray(picture)).max() <= 1
        if drawn:
            return
    pytest.fail("no seed draws")


def test_a_bundle_keeps_its_vit(pipeline: Pipeline, tmp_path: Any) -> None:
    pipeline.save(tmp_path)
    for packed in (False, True):
        again = load(tmp_path, packed=packed)
        settings: dict[str, Any] = {"mode": "text", "max_new_tokens": 12, "temperature": 0.0}
        assert again.generate(PROMPTS, **settings) == pipeline.generate(PROMPTS, **settings)


def test_a_grammar_rules_answers_about_images_that_a_vit_sees(pipeline: Pipeline) -> None:
    answers = pipeline.generate(PROMPTS, mode="text", grammar=["yes", "no"])
    assert all(answer[0] in ("yes", "no") for answer in answers)


def test_recorded_log_probabilities_are_scored_again_through_the_vit(pipeline: Pipeline) -> None:
    requests = pipeline.requests(PROMPTS, pipeline.decode_config("text", max_new_tokens=12, temperature=0.8))
    decoded = pipeline.engine.decode(requests)
    scores = pipeline.engine.score(requests, [answer.ids for answer in decoded])
    for answer, found in zip(decoded, scores, strict=True):
        torch.testing.assert_close(found, torch.tensor(answer.log_probs), rtol=1e-3, atol=1e-4)
    other = [dataclasses.replace(request, pixels=[255 - p for p in request.pixels]) for request in requests]
    changed = pipeline.engine.score(other, [answer.ids for answer in decoded])
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(scores[1:], changed[1:], strict=True))


def test_painted_images_have_no_probabilities(pipeline: Pipeline) -> None:
    (request,) = pipeline.requests([PROMPTS[1]], pipeline.decode_config("image", flow=FEW))
    (decoded,) = pipeline.engine.decode([request])
    with pytest.raises(ValueError, match="drawn from latents has no probability"):
        pipeline.engine.score([request], [decoded.ids])


def test_prompts_that_begin_alike_share_images_that_are_equal_and_no_others(pipeline: Pipeline) -> None:
    """What they have in common is read once; an image of other pixels is not taken for it."""
    same, other = noise(16, 16, seed=8), noise(16, 16, seed=9)
    prompts: list[Any] = [[same, "what color is it?"], [same, "is it red?"], [other, "what color is it?"]]
    settings: dict[str, Any] = {"mode": "text", "max_new_tokens": 10}
    together = pipeline.generate(prompts * 2, seed=5, **settings)
    alone = [pipeline.generate([prompt], seed=5 + i, **settings)[0] for i, prompt in enumerate(prompts * 2)]
    assert [a.ids for a in together] == [a.ids for a in alone]


def test_an_answer_in_text_is_read_as_questions_are_in_training(pipeline: Pipeline) -> None:
    """Patches alone; a drawing has the clean copies too."""
    for mode, media in (("text", ["patches"] * 2), ("image", ["latents", "patches"] * 2)):
        (request,) = pipeline.requests([PROMPTS[2]], pipeline.decode_config(mode))  # type: ignore[arg-type]
        context = read_prompt(request, pipeline.token_space, pipeline.reading)
        assert [run.media.name for run in context.runs if run.media] == media
    few = dataclasses.replace(request, pixels=request.pixels[:1])
    with pytest.raises(ValueError, match="2 images and comes with pixels of 1"):
        read_prompt(few, pipeline.token_space, pipeline.reading)
    bare = dataclasses.replace(request, pixels=(), latents=())
    with pytest.raises(ValueError, match="they go together"):
        pipeline.engine.decode([bare])


@pytest.mark.slow
def test_a_picture_begins_only_where_its_patches_fit_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its 16 patches take more of it than its codes would."""
    small = tiny_flow_pipeline(vit=True, max_length=60)
    used: list[int] = []
    real = Batch.insert

    def inserted(self: Batch, painted: Any) -> None:
        real(self, painted)
        used.extend(len(self.context(number)) for number in painted)

    monkeypatch.setattr(Batch, "insert", inserted)
    prompts = ["a" * length for length in range(2, 50, 2)]
    for seed in range(16):
        small.generate(prompts, mode="mixed", flow=FEW, max_new_tokens=58, seed=seed, temperature=2.0)
    assert len(used) > 10 and max(used) <= 60
