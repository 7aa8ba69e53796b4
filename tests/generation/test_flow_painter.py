"""Decoding with the flow branch: images wherever one is due, for any batch, and answers that look like others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from data_pipelines.batch import collate
from data_pipelines.outline import Outline, RunMedia, media_run
from tests.oracles.passes import velocity
from tests.oracles.pictures import noise
from tests.oracles.tiny import tiny_flow_pipeline
from tokenizers_vq.media import LATENTS
from unimodal.generation.batch import Batch
from unimodal.generation.batch_media import media_tokens
from unimodal.generation.context import Context, read_prompt, without_words
from unimodal.generation.events import ImageDone, ImageStarted, TextPiece
from unimodal.generation.flow_sampling import FlowSamplingConfig
from unimodal.generation.grammars import JSONSchema
from unimodal.generation.painters.base import CachedContexts
from unimodal.generation.painters.flow import FlowPainter
from unimodal.generation.pipeline import Pipeline, load
from unimodal.generation.reading import read
from unimodal.model.cache import KVCache
from unimodal.model.masks import dense_mask

FEW = FlowSamplingConfig(steps=3)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return tiny_flow_pipeline()


PICTURES = [noise(16, 16, seed=seed) for seed in range(3)]
PROMPTS: list[Any] = [
    "a red circle",
    [PICTURES[0], "make it blue"],
    ["a", PICTURES[1], "b", PICTURES[2]],
    ["a red circle", [PICTURES[1], "yes"], "now a blue one"],
]


def pixels(answers: list) -> list[list[Any]]:
    return [[part.tobytes() if isinstance(part, Image.Image) else part for part in answer] for answer in answers]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["image", "mixed", "text"])
@pytest.mark.parametrize("guidance", [{}, {"guidance": 3.0}, {"guidance": 3.0, "image_guidance": 1.5}])
def test_a_batch_answers_as_each_prompt_alone(pipeline: Pipeline, mode: Any, guidance: dict[str, Any]) -> None:
    settings = {"mode": mode, "flow": FEW, "max_new_tokens": 40, **guidance}
    together = pipeline.generate(PROMPTS, seed=7, **settings)
    alone = [pipeline.generate([prompt], seed=7 + i, **settings)[0] for i, prompt in enumerate(PROMPTS)]
    assert [a.ids for a in together] == [a.ids for a in alone]
    assert [a.finish for a in together] == [a.finish for a in alone]
    for one, other in zip(together, alone, strict=True):
        shown = [
            [torch.tensor(list(p.tobytes())) for p in answer if isinstance(p, Image.Image)] for answer in (one, other)
        ]
        assert all(int((a - b).abs().max()) <= 1 for a, b in zip(*shown, strict=True))
    assert pixels(pipeline.generate(PROMPTS, seed=7, batch_size=2, **settings)) == pixels(
        [*pipeline.generate(PROMPTS[:2], seed=7, **settings), *pipeline.generate(PROMPTS[2:], seed=9, **settings)]
    )


def test_an_image_is_what_the_discrete_branch_gives_to_whoever_asks(pipeline: Pipeline) -> None:
    space, specials = pipeline.token_space, pipeline.token_space.specials
    for answer in pipeline.generate(PROMPTS, mode="image", flow=FEW):
        (picture,) = answer
        assert isinstance(picture, Image.Image) and picture.size == (16, 16)
        assert answer.finish == "end" and len(answer.ids) == len(answer.log_probs) == space.layout.span
        assert answer.ids[0] == specials.boi and answer.ids[-1] == specials.eoi
        assert space.read_image(answer.ids, 0) is not None


@pytest.mark.slow
def test_what_was_drawn_stands_in_the_context_as_clean_latents_and_codes(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the scheduler reads after an image, against what templates write for training."""
    shown: list[Any] = []
    real = Batch.insert

    def kept(self: Batch, painted: Any) -> None:
        shown.extend(painted.values())
        real(self, painted)

    monkeypatch.setattr(Batch, "insert", kept)
    space, specials = pipeline.token_space, pipeline.token_space.specials
    config = pipeline.decode_config("mixed", max_new_tokens=60, flow=FEW)
    drawn = 0
    for seed in range(8):
        shown.clear()
        (decoded,) = pipeline.engine.decode(pipeline.requests(["a red circle"], config, seed))
        starts = [index for index, token in enumerate(decoded.ids) if token == specials.boi]
        assert len(starts) == len(shown) == len(decoded.pictures)
        for image, start, picture in zip(shown, starts, decoded.pictures, strict=True):
            drawn += 1
            clean, codes = image.image.runs(space)
            assert codes.media is None
            assert codes.ids.tolist() == decoded.ids[start : start + space.layout.span]
            assert clean.media is not None and clean.media.name == LATENTS and clean.media.state == "clean"
            pixels, _ = pipeline._read(torch.from_numpy(clean.media.values)[None])
            torch.testing.assert_close(pixels[0], picture)
    assert drawn, "no seed draws"


@pytest.mark.slow
def test_an_answer_after_an_image_is_that_of_its_whole_context(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log-probabilities of what follows an image, against one forward pass over prompt, image and text."""
    shown: list[Any] = []
    real = Batch.insert
    monkeypatch.setattr(Batch, "insert", lambda self, painted: (shown.extend(painted.values()), real(self, painted))[1])
    space, specials = pipeline.token_space, pipeline.token_space.specials
    config = pipeline.decode_config("mixed", max_new_tokens=space.layout.span + 5, flow=FEW)  # one image fits, not two
    checked = 0
    for seed in range(30):
        shown.clear()
        (request,) = pipeline.requests([PROMPTS[1]], config, seed)
        (decoded,) = pipeline.engine.decode([request])
        if not shown:
            continue
        first = decoded.ids.index(specials.boi)
        after = first + space.layout.span
        context = read_prompt(request, space, pipeline.reading)
        context.say(decoded.ids[:first])
        context.show(shown[0].image, space)
        context.say(decoded.ids[after:-1])
        expected = whole_text_log_probs(pipeline, context, decoded.ids[after:])
        torch.testing.assert_close(torch.tensor(decoded.log_probs[after:]), expected, rtol=1e-3, atol=1e-3)
        checked += len(decoded.ids) - after
    assert checked > 3, "no seed draws and goes on"


def whole_text_log_probs(pipeline: Pipeline, context: Context, ids: list[int]) -> torch.Tensor:
    """Of the text that a context ends with but for its last token, where no image may begin."""
    space, specials = pipeline.token_space, pipeline.token_space.specials
    sequence = Outline((), (tuple(context.runs),)).build()
    batch = collate([[sequence]], len(sequence), space)
    mask = dense_mask(batch.documents, batch.branches, batch.spans)
    media = {name: media_tokens(packed) for name, packed in batch.media.items()}
    with torch.inference_mode():
        features = pipeline.model(batch.tokens, batch.positions, mask, media=media)
        logits = pipeline.model.token_head(features[0, -len(ids) :]).float()
    allowed = torch.full((logits.shape[-1],), float("-inf"))
    allowed[: space.text_size] = 0
    allowed[[specials.pad, specials.bos, specials.boi, specials.eoi, specials.sep, specials.null]] = float("-inf")
    return (logits + allowed).log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_a_guided_step_weighs_the_velocities_of_the_three_contexts(pipeline: Pipeline, schedule: Any) -> None:
    """One Euler step from each row's own noise, with velocities computed without cache or batch."""
    flow = FlowSamplingConfig(steps=1)
    config = pipeline.decode_config("image", guidance=3.0, image_guidance=1.7, guidance_schedule=schedule, flow=flow)
    (request,) = pipeline.requests([PROMPTS[1]], config, 5)
    context = read_prompt(request, pipeline.token_space, pipeline.reading)
    with torch.inference_mode():
        noise = torch.randn(4, 3, generator=torch.Generator().manual_seed(5))
        full, image, null = (
            whole_velocity(pipeline, one, noise, 1.0)
            for one in (
                context,
                without_words(context, pipeline.token_space, images=True),
                without_words(context, pipeline.token_space, images=False),
            )
        )
        text_scale, image_scale = (3.0, 1.7) if schedule == "constant" else (1.0, 1.0)
        expected = noise - (null + image_scale * (image - null) + text_scale * (full - image))
        pixels, _ = pipeline._read(expected.view(1, 2, 2, 3))
        (decoded,) = pipeline.engine.decode([request])
    torch.testing.assert_close(decoded.pictures[0], pixels[0], rtol=1e-3, atol=1e-3)


def test_scales_of_one_are_no_guidance(pipeline: Pipeline) -> None:
    settings: tuple[dict[str, Any], ...] = (
        {"guidance": 1.0},
        {"guidance": 1.0, "image_guidance": 1.0},
        {"guidance": 1.0 + 1e-9, "image_guidance": 1.0},
    )
    plain, *ones = (pipeline.generate(PROMPTS[:2], mode="image", flow=FEW, **scales) for scales in settings)
    assert all(pixels(one) == pixels(plain) for one in ones)
    guided = pipeline.generate(PROMPTS[:2], mode="image", flow=FEW, guidance=4.0)
    assert pixels(guided) != pixels(plain)


@pytest.mark.parametrize("steps", [1, 5])
def test_the_model_is_asked_once_for_each_step(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    times: list[float] = []
    real = FlowPainter.velocities

    def counted(self: FlowPainter, contexts: CachedContexts, latents: torch.Tensor, time: float) -> torch.Tensor:
        times.append(time)
        return real(self, contexts, latents, time)

    monkeypatch.setattr(FlowPainter, "velocities", counted)
    pipeline.generate(PROMPTS[:2], mode="image", steps=steps)
    assert len(times) == steps and times[0] == 1


def test_the_cached_context_gives_the_velocities_of_the_whole_sequence(pipeline: Pipeline) -> None:
    """Against a slow oracle: everything in one forward pass, no cache, the noised image at the end."""
    requests = pipeline.requests(PROMPTS, pipeline.decode_config("image"))
    contexts = [read_prompt(r, pipeline.token_space, pipeline.reading) for r in requests]
    model, painter, count = pipeline.model, pipeline.engine.painter, 4
    assert isinstance(painter, FlowPainter)
    with torch.inference_mode():
        lengths = [len(context) for context in contexts]
        cache = KVCache(model.config.trunk, len(contexts), max(lengths) + count + 2, model.dtype)
        read(model, cache, [context.piece() for context in contexts], pipeline.token_space.specials.pad)
        positions = torch.tensor([context.position for context in contexts])
        latents = torch.randn(len(contexts), count, 3)
        found = painter.velocities(CachedContexts(cache, torch.tensor(lengths), positions), latents, 0.6)
        for row, context in enumerate(contexts):
            expected = whole_velocity(pipeline, context, latents[row], 0.6)
            torch.testing.assert_close(found[row], expected, rtol=1e-3, atol=1e-4)


def whole_velocity(pipeline: Pipeline, context: Context, latents: torch.Tensor, time: float) -> torch.Tensor:
    model, space = pipeline.model, pipeline.token_space
    drawn = media_run(RunMedia(LATENTS, latents.view(2, 2, 3).numpy(), "noised"), space, 0.0)
    sequence = Outline((), ((*context.runs, drawn),)).build()
    batch = collate([[sequence]], len(sequence), space)
    packed = batch.media[LATENTS]
    media = media_tokens(packed)._replace(times=torch.where(packed.spans < 0, time, 0.0))
    mask = dense_mask(batch.documents, batch.branches, batch.spans)
    features = model(batch.tokens, batch.positions, mask, media={LATENTS: media})
    return velocity(model, features, media)[-4:]


def test_contexts_of_guidance_lose_the_words_or_everything(pipeline: Pipeline) -> None:
    space, specials = pipeline.token_space, pipeline.token_space.specials
    request = pipeline.requests([PROMPTS[2]], pipeline.decode_config("image"))[0]
    context = read_prompt(request, space, pipeline.reading)
    nothing = without_words(context, space, images=False)
    assert [token for run in nothing.runs for token in run.ids] == [specials.bos, specials.null, specials.sep]
    pictures = without_words(context, space, images=True)
    assert [run.media is not None for run in pictures.runs] == [False, False, True, False, True, False, False]
    assert pictures.position == 3 + 2 * (1 + space.layout.span)


def test_a_dialogue_goes_on_with_what_was_drawn(pipeline: Pipeline) -> None:
    """The model is made to draw, then to speak: what it drew stands in its context as a clean copy and codes."""
    settings: dict[str, Any] = {"mode": "mixed", "flow": FEW, "max_new_tokens": 60}
    for seed in range(20):
        answers = pipeline.generate(PROMPTS, seed=seed, **settings)
        drawn = [part for answer in answers for part in answer if isinstance(part, Image.Image)]
        if drawn:
            break
    assert drawn, "no seed draws"
    events = list(pipeline.generate(PROMPTS, seed=seed, stream=True, **settings))
    done = [event.image for event in events if isinstance(event, ImageDone)]
    assert sorted(p.tobytes() for p in done) == sorted(p.tobytes() for p in drawn)
    assert sum(isinstance(event, ImageStarted) for event in events) == len(drawn)
    for number, answer in enumerate(answers):
        said = "".join(event.text for event in events if isinstance(event, TextPiece) and event.prompt == number)
        assert said == "".join(part for part in answer if isinstance(part, str))


def test_an_image_that_does_not_fit_is_not_begun_and_the_answer_goes_on_in_text(pipeline: Pipeline) -> None:
    with pytest.raises(ValueError, match="an image and its end take"):
        pipeline.generate(["a"], mode="image", max_new_tokens=3)
    for seed in range(6):
        for answer in pipeline.generate(PROMPTS, mode="mixed", flow=FEW, max_new_tokens=5, seed=seed):
            assert not any(isinstance(part, Image.Image) for part in answer)
            assert answer.finish == "end" or (answer.finish, len(answer.ids)) == ("length", 5)


def test_pictures_of_a_prompt_count_with_their_latents_and_too_many_are_refused() -> None:
    small = tiny_flow_pipeline(max_length=64)
    pictures = [PICTURES[0]] * 4  # 4 x (6 + 6) tokens, and what parts them
    (answer,) = small.generate([[*pictures, "a"]], mode="image", flow=FEW, max_new_tokens=8)
    assert len(answer) == 1
    modes: tuple[tuple[Any, int], ...] = (("image", 1), ("mixed", 2))
    for mode, more in modes:
        with pytest.raises(ValueError, match="images among them, leaves no room"):
            small.generate([[*pictures, *PICTURES[:more], "a"]], mode=mode, flow=FEW, max_new_tokens=8)
    most = small.model.config.trunk.max_length
    (request,) = small.requests([[*pictures, "a"]], small.decode_config("mixed", max_new_tokens=60, flow=FEW))
    (decoded,) = small.engine.decode([request])
    context = read_prompt(request, small.token_space, small.reading)
    assert len(context) + len(decoded.ids) <= most


def test_wrong_requests_are_refused_before_anything_is_streamed(pipeline: Pipeline) -> None:
    with pytest.raises(ValueError, match="no other size"):
        pipeline.generate(["a"], mode="mixed", aspect_ratio=2.0, stream=True)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"mode": "image", "aspect_ratio": 2.0}, "no other size"),
        ({"mode": "image", "steps": 0}, "number of steps"),
        ({"mode": "image", "solver": "rk4"}, "euler, heun"),
    ],
)
def test_wrong_settings_are_refused(pipeline: Pipeline, wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        pipeline.generate(["a"], **wrong)


def test_a_grammar_asks_for_images_that_are_painted(pipeline: Pipeline) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "image"}, "b": {"enum": ["red"]}}, "required": ["a", "b"]}
    settings: dict[str, Any] = {"mode": "mixed", "grammar": JSONSchema(schema), "flow": FEW, "max_new_tokens": 80}
    answers = pipeline.generate([*PROMPTS, "a"], seed=3, **settings)
    assert answers[0].finish == "end"
    for number, answer in enumerate(answers):
        assert sum(isinstance(part, Image.Image) for part in answer) == 1
        text = "".join(part if isinstance(part, str) else '"image"' for part in answer)
        assert json.loads(text)["b"] == "red"
        (alone,) = pipeline.generate([[*PROMPTS, "a"][number]], seed=3 + number, **settings)
        assert alone.ids == answer.ids


def test_text_takes_a_grammar_as_ever(pipeline: Pipeline) -> None:
    (answer,) = pipeline.generate([[PICTURES[0], "what?"]], mode="text", grammar=["yes", "no"])
    assert answer[0] in ("yes", "no")


def test_a_bundle_is_saved_and_opened_with_its_autoencoder(pipeline: Pipeline, tmp_path: Path) -> None:
    pipeline.save(tmp_path / "model")
    opened = load(tmp_path / "model")
    settings = {"mode": "image", "flow": FEW}
    assert pixels(opened.generate(PROMPTS, **settings)) == pixels(pipeline.generate(PROMPTS, **settings))


def test_a_bundle_without_its_autoencoder_or_with_another_is_refused(pipeline: Pipeline, tmp_path: Path) -> None:
    import shutil

    from tests.oracles.tiny import tiny_autoencoder

    pipeline.save(tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "autoencoder")
    with pytest.raises(ValueError, match="no autoencoder folder"):
        load(tmp_path / "model")
    tiny_autoencoder(latent_dim=5).save(tmp_path / "model" / "autoencoder")
    with pytest.raises(ValueError, match="2x2 latents of 5 channels, the model was trained on 2x2 of 3"):
        load(tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "autoencoder")
    tiny_autoencoder(seed=1).save(tmp_path / "model" / "autoencoder")
    with pytest.raises(ValueError, match="is not the autoencoder that the model was trained with"):
        load(tmp_path / "model")
