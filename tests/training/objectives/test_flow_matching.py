"""Flow matching: times and noise of a batch, and the squared error of a velocity."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from data_pipelines.batch import PackedBatch, collate
from data_pipelines.datamodule import TokenDataModule
from data_pipelines.planning import StreamConfig
from data_pipelines.shards.format import TokenDocument, TokenSegment
from data_pipelines.stream import PackedStream
from data_pipelines.templates import TemplateConfig, render
from tests.oracles.passes import velocity
from tests.oracles.tiny import tiny_model, tiny_shards, tiny_space
from tokenizers_vq.media import LATENTS
from unimodal.generation.batch_media import media_tokens
from unimodal.model.branches.flow import logit_normal_times
from unimodal.model.config import FlowConfig
from unimodal.model.masks import dense_mask
from unimodal.model.model import VELOCITY
from unimodal.training.objectives.base import Term
from unimodal.training.objectives.flow_matching import FlowMatching, NoisedLatents, noise_latents

CONFIG = FlowConfig(latent_dim=3, grid_size=2)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_shards(tmp_path_factory.mktemp("data") / "shards", latents=True)


@pytest.fixture(scope="module")
def batch(shards: Path) -> PackedBatch:
    templates = TemplateConfig(image_first=0.2, drawn="latents")
    data = TokenDataModule([str(shards)], StreamConfig(length=48, rows=4), templates)
    data.setup("fit")
    return next(iter(data.train_dataloader()))


def noised(batch: PackedBatch, seed: int = 0) -> NoisedLatents:
    packed = batch.media[LATENTS]
    generator = torch.Generator().manual_seed(seed)
    return noise_latents(packed, media_tokens(packed), batch.tokens.shape, 1.0, generator)


def times_of(given: NoisedLatents) -> Tensor:
    assert given.media.times is not None
    return given.media.times


def loss_of(answer: Tensor, batch: PackedBatch, given: NoisedLatents, weight: float = 1.0) -> Term:
    """The term of a model whose velocities are `answer` (M, C)."""
    features = torch.full((batch.tokens.numel(), answer.shape[1]), torch.nan).index_copy(0, given.media.index, answer)
    model: Any = SimpleNamespace(heads={VELOCITY: nn.Identity()})
    terms = FlowMatching(weight=weight).terms(model, features.view(*batch.tokens.shape, -1), batch, given)
    assert terms.keys() == {"flow"}
    return terms["flow"]


def test_each_noised_picture_has_one_time_and_clean_ones_none(batch: PackedBatch) -> None:
    packed, given = batch.media[LATENTS], noised(batch)
    spans, rows = packed.spans, packed.index // batch.tokens.shape[1]
    pictures = {(int(r), int(s)): times_of(given)[(rows == r) & (spans == s)] for r, s in zip(rows, spans, strict=True)}
    assert all(len(times.unique()) == 1 for times in pictures.values())
    drawn = [float(times[0]) for (_, span), times in pictures.items() if span < 0]
    assert len(set(drawn)) == len(drawn) > 4 and all(0 < time < 1 for time in drawn)
    assert all(float(times[0]) == 0 for (_, span), times in pictures.items() if span > 0)
    clean = given.weights == 0
    assert torch.equal(given.media.index, packed.index)
    assert torch.equal(given.media.values[clean], packed.values[clean])
    x0, t = packed.values, times_of(given)[:, None]
    torch.testing.assert_close(given.media.values, (1 - t) * x0 + t * (given.target + x0))
    assert torch.equal(given.weights, packed.weights)


def test_prediction_and_target_rows_are_in_one_order(batch: PackedBatch) -> None:
    """The loss of the exact answer is 0, and only noised latents have a weight."""
    given = noised(batch)
    exact = loss_of(given.target, batch, given)
    assert float(exact.weighted) == 0
    off = loss_of(given.target + 2, batch, given)
    assert float(off.weighted / off.weight) == pytest.approx(4)
    assert float(off.weight) == pytest.approx(float(batch.loss_weights.sum()), rel=1e-4)
    some = given.weights > 0
    assert 0 < int(some.sum()) < len(some)
    elsewhere = torch.where(some[:, None], given.target, given.target + 2)
    assert float(loss_of(elsewhere, batch, given).weighted) == 0


def test_the_weight_of_the_objective_scales_its_term(batch: PackedBatch) -> None:
    given = noised(batch)
    once, twice = (loss_of(given.target + 2, batch, given, weight) for weight in (1.0, 2.0))
    assert (float(twice.weighted), float(twice.weight)) == (2 * float(once.weighted), 2 * float(once.weight))


def test_both_sign_conventions_have_the_same_loss(batch: PackedBatch) -> None:
    """t = 1 the image and v = x_0 - noise, as Show-o2 has it: built anew from the same image and noise, a model that
    answers in that convention has the loss of ours."""
    given = noised(batch)
    x0 = batch.media[LATENTS].values
    drawn = given.weights > 0
    epsilon, theirs = x0 + given.target, 1 - times_of(given)[:, None]
    mixed = theirs * x0 + (1 - theirs) * epsilon
    torch.testing.assert_close(mixed[drawn], given.media.values[drawn])

    def model(x: Tensor, time: Tensor) -> Tensor:
        """Some velocity in our convention."""
        return torch.tanh(x) * (1 + time) + time.square()

    ours = loss_of(model(given.media.values, times_of(given)[:, None]), batch, given)
    loss = ((-model(mixed, 1 - theirs) - (x0 - epsilon)).square().mean(-1) * given.weights).sum()
    torch.testing.assert_close(ours.weighted, loss)


def test_noise_repeats_with_its_generator_and_times_follow_the_shift() -> None:
    one, two = (logit_normal_times(1000, 3.0, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one, two) and float(one.median()) == pytest.approx(0.75, abs=0.03)


def test_weights_of_latents_are_those_of_the_whole_step(shards: Path) -> None:
    templates = TemplateConfig(drawn="latents")
    data = TokenDataModule([str(shards)], StreamConfig(length=48, rows=2), templates)
    data.setup("fit")
    space = data.spec.space
    ranks = [
        iter(
            PackedStream(data.train_sources, space, templates, data.stream, rounds_per_step=3, rank=rank, world_size=2)
        )
        for rank in range(2)
    ]
    for _ in range(4):
        step = [next(rank) for rank in ranks for _ in range(3)]
        weighed = sum(float(packed.weights.sum()) for batch in step for packed in batch.media.values())
        assert weighed == pytest.approx(sum(float(batch.loss_weights.sum()) for batch in step), rel=1e-5)


def test_a_stream_restored_within_a_step_weighs_latents_as_the_unbroken_one(shards: Path) -> None:
    from torchdata.stateful_dataloader import StatefulDataLoader

    templates = TemplateConfig(drawn="latents")
    data = TokenDataModule([str(shards)], StreamConfig(length=48, rows=2), templates)
    data.setup("fit")
    space = data.spec.space

    def loader() -> Any:
        stream = PackedStream(data.train_sources, space, templates, data.stream, rounds_per_step=3)
        return StatefulDataLoader(stream, batch_size=None)

    def weights(given: Any) -> list[float]:
        return [max((float(packed.weights.max()) for packed in b.media.values()), default=0.0) for b in given]

    for stop in (1, 2, 3):
        unbroken = iter(before := loader())
        for _ in range(stop):
            next(unbroken)
        state = before.state_dict()
        expected = weights(next(unbroken) for _ in range(4))
        resumed = loader()
        resumed.load_state_dict(state)
        again = iter(resumed)
        assert weights(next(again) for _ in range(4)) == expected and max(expected) > 0


def test_a_step_of_one_batch_is_that_of_its_parts_under_the_same_noise(batch: PackedBatch) -> None:
    """Velocities of a whole batch are those of its rows: packed = alone."""
    model = tiny_model(int(batch.tokens.max()) + 400, flow=CONFIG, mixture=True)
    given = noised(batch, seed=3).media
    rows = given.index // batch.tokens.shape[1]
    assert given.times is not None

    def velocities(part: PackedBatch, first: int, end: int) -> Tensor:
        own = (rows >= first) & (rows < end)
        clean = media_tokens(part.media[LATENTS])
        assert given.times is not None and len(clean.index) == int(own.sum())
        media = clean._replace(values=given.values[own].double(), times=given.times[own].double())
        mask = dense_mask(part.documents, part.branches, part.spans)
        return velocity(model, model(part.tokens, part.positions, mask, media={LATENTS: media}), media)

    whole = velocities(batch, 0, 4)
    alone = torch.cat([velocities(batch.rows(i, i + 1), i, i + 1) for i in range(4)])
    torch.testing.assert_close(whole, alone, rtol=1e-10, atol=1e-10)


def test_without_any_weighted_token_latents_count_all_the_same() -> None:
    space = tiny_space()
    image = TokenSegment(
        kind="image", role="answer", ids=np.arange(16, 20), media={LATENTS: np.zeros((2, 2, 3), dtype=np.float16)}
    )
    document = TokenDocument(key="d", segments=(image,))
    rendered = render(document, space, TemplateConfig(image_first=0, drawn="latents"), Random(0))
    silent = dataclasses.replace(rendered, weights=np.zeros_like(rendered.weights))
    batch = collate([[silent]], 16, space)
    assert 0 < float(batch.media[LATENTS].weights.sum()) <= 1e-8


def test_settings_that_make_no_sense_are_refused() -> None:
    for wrong, reason in (
        ({"weight": -1.0}, "weight of a flow"),
        ({"shift": 0.0}, "shift above 0"),
        ({"seed": -1}, "seed of a flow"),
        ({"seed": 2**31}, "seed of a flow"),
    ):
        settings: dict[str, Any] = wrong
        with pytest.raises(ValueError, match=reason):
            FlowMatching(**settings)
