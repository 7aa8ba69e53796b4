"""Training the flow branch: the loss of a step, ranks and accumulation, resuming, averaging, freezing, bundles."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data_pipelines.batch import PackedBatch, collate
from data_pipelines.datamodule import TokenDataModule
from data_pipelines.planning import StreamConfig
from data_pipelines.templates import TemplateConfig, render
from tests.oracles.tiny import tiny_shards, tiny_space
from tests.oracles.tiny_training import fit_arguments, logged, weights_after
from tests.training.test_resume import LAST_SAVED, STEPS, refusal, train_and_kill, train_to_the_end
from tokenizers_vq.media import LatentSpec, MediaSpec
from unimodal.generation.pipeline import load
from unimodal.model.config import FlowConfig
from unimodal.model.flow import logit_normal_times
from unimodal.training.cli import run
from unimodal.training.flow import FlowTrainingConfig, flow_sums, noise

FLOW: dict[str, str | float] = {"model__flow": "{weight: 0.5}", "data__templates__drawn": "latents"}
ADAMW: dict[str, str | float] = {
    "model__optimizer": "AdamWConfig",
    "model__optimizer__eps": 1e-3,
    "model__optimizer__learning_rate": 0.01,
}
AVERAGE: dict[str, str | float] = {
    "trainer__callbacks": "[{class_path: lightning.pytorch.callbacks.EMAWeightAveraging, init_args: {decay: 0.5}}]"
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_shards(tmp_path_factory.mktemp("data") / "shards", latents=True)


def batches(shards: Path, count: int) -> list[PackedBatch]:
    templates = TemplateConfig(image_first=0.2, drawn="latents")
    data = TokenDataModule([str(shards)], StreamConfig(length=48, rows=4), templates)
    data.setup("fit")
    stream = iter(data.train_dataloader())
    return [next(stream) for _ in range(count)]


CONFIG = FlowConfig(latent_dim=3, side=2)


def test_each_noised_picture_has_one_time_and_clean_ones_none(shards: Path) -> None:
    batch = batches(shards, 1)[0]
    packed = batch.media["latents"]
    given = noise(batch.media["latents"], CONFIG, 1.0, batch.tokens, torch.Generator().manual_seed(0))
    spans, rows = packed.spans, packed.index // batch.tokens.shape[1]
    pictures = {
        (int(r), int(s)): given.media.times[(rows == r) & (spans == s)] for r, s in zip(rows, spans, strict=True)
    }
    assert all(len(times.unique()) == 1 for times in pictures.values())
    noised = [float(times[0]) for (_, span), times in pictures.items() if span < 0]
    assert len(set(noised)) == len(noised) > 4 and all(0 < time < 1 for time in noised)
    assert all(float(times[0]) == 0 for (_, span), times in pictures.items() if span > 0)
    clean = given.weights == 0
    assert torch.equal(given.media.index, packed.index)
    assert torch.equal(given.media.latents[clean], packed.values[clean])
    x0, t = packed.values, given.media.times[:, None]
    torch.testing.assert_close(given.media.latents, (1 - t) * x0 + t * (given.target + x0))
    assert torch.equal(given.weights, packed.weights)


def test_prediction_and_target_rows_are_in_one_order(shards: Path) -> None:
    """The loss of the exact answer is 0, and only noised latents have a weight."""
    batch = batches(shards, 1)[0]
    given = noise(batch.media["latents"], CONFIG, 1.0, batch.tokens, torch.Generator().manual_seed(0))
    exact = flow_sums(given.target, given)
    assert float(exact.weighted) == float(exact.plain) == 0
    off = flow_sums(given.target + 2, given)
    assert float(off.plain) == pytest.approx(4 * int(off.count)) and int(off.count) == int((given.weights > 0).sum())
    assert float(off.weighted) == pytest.approx(4 * float(batch.loss_weights.sum()), rel=1e-4)


def test_both_sign_conventions_have_the_same_loss(shards: Path) -> None:
    """t = 1 the image and v = x_0 - noise, as Show-o2 has it: built anew from the same image and noise, a model that
    answers in that convention has the loss of ours."""
    batch = batches(shards, 1)[0]
    given = noise(batch.media["latents"], CONFIG, 1.0, batch.tokens, torch.Generator().manual_seed(0))
    x0 = batch.media["latents"].values
    drawn = given.weights > 0
    epsilon, theirs = x0 + given.target, 1 - given.media.times[:, None]
    mixed = theirs * x0 + (1 - theirs) * epsilon
    torch.testing.assert_close(mixed[drawn], given.media.latents[drawn])

    def model(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """Some velocity in our convention."""
        return torch.tanh(x) * (1 + time) + time.square()

    ours = flow_sums(model(given.media.latents, given.media.times[:, None]), given)
    loss = ((-model(mixed, 1 - theirs) - (x0 - epsilon)).square().mean(-1) * given.weights).sum()
    torch.testing.assert_close(ours.weighted, loss)


def test_noise_repeats_with_its_generator_and_times_follow_the_shift() -> None:
    one, two = (logit_normal_times(1000, 3.0, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one, two) and float(one.median()) == pytest.approx(0.75, abs=0.03)


def test_weights_of_latents_are_those_of_the_whole_step(shards: Path) -> None:
    templates = TemplateConfig(drawn="latents")
    data = TokenDataModule([str(shards)], StreamConfig(length=48, rows=2), templates)
    data.setup("fit")
    from data_pipelines.stream import PackedStream

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


def test_a_step_of_one_batch_is_that_of_its_parts_under_the_same_noise(shards: Path) -> None:
    """Sums of a whole batch are the sums of its rows, latents included: packed = alone."""
    from tests.oracles.tiny import tiny_transformer
    from unimodal.model.masks import dense_mask

    batch = batches(shards, 1)[0]
    model = tiny_transformer(int(batch.tokens.max()) + 400, flow=CONFIG, mixture=True)
    given = noise(batch.media["latents"], CONFIG, 1.0, batch.tokens, torch.Generator().manual_seed(3))
    index = batch.media["latents"].index
    standing = torch.zeros(batch.tokens.numel(), dtype=torch.bool).index_fill(0, index, True).view_as(batch.tokens)

    def velocity(part: PackedBatch, rows: slice) -> torch.Tensor:
        from unimodal.model.flow import latent_tokens

        own = standing.nonzero()[:, 0]
        chosen = (own >= rows.start) & (own < rows.stop)
        media = latent_tokens(
            standing[rows],
            given.media.latents[chosen].double(),
            given.media.times[chosen].double(),
            given.media.places[chosen],
        )
        assert torch.equal(part.media["latents"].index, media.index) and model.flow is not None
        mask = dense_mask(part.documents, part.branches, part.spans)
        features = model.features(part.tokens, part.positions, mask, media=media)
        return model.flow.velocity(features.flatten(0, 1)[media.index])

    whole = velocity(batch, slice(0, 4))
    alone = torch.cat([velocity(batch.rows(i, i + 1), slice(i, i + 1)) for i in range(4)])
    torch.testing.assert_close(whole, alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("what", ["no image", "no text"])
def test_a_pack_without_an_image_or_without_text_trains(shards: Path, tmp_path: Path, what: str) -> None:
    share = {"no image": 1.0, "no text": 0.0}[what]
    options = {**FLOW, "data__templates__image_first": share, "data__templates__prompt_weight": 0.0}
    run(fit_arguments(shards, tmp_path, trainer__max_steps=2, **options))
    assert all(float(value) == float(value) for value in logged(tmp_path, "train/loss").values())


def test_without_any_weighted_token_latents_count_all_the_same() -> None:
    from data_pipelines.shards.format import TokenDocument, TokenSegment

    space = tiny_space()
    image = TokenSegment(
        kind="image", role="answer", ids=np.arange(16, 20), media={"latents": np.zeros((2, 2, 3), dtype=np.float16)}
    )
    document = TokenDocument(key="d", segments=(image,))
    rendered = render(document, space, TemplateConfig(image_first=0, drawn="latents"), Random(0))
    silent = dataclasses.replace(rendered, weights=np.zeros_like(rendered.weights))
    batch = collate([[silent]], 16, space)
    assert 0 < float(batch.media["latents"].weights.sum()) <= 1e-8


def test_two_processes_train_the_flow_as_one_that_accumulates_their_batches(shards: Path, tmp_path: Path) -> None:
    shared = {"trainer__max_steps": 2, **FLOW, **ADAMW}
    one = fit_arguments(shards, tmp_path / "one", trainer__accumulate_grad_batches=2, **shared)
    two = fit_arguments(shards, tmp_path / "two", trainer__devices=2, trainer__strategy="ddp", **shared)
    alone, together = weights_after((one, tmp_path / "one"), (two, tmp_path / "two"))
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=0, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_a_killed_run_with_averaged_weights_goes_on_exactly(shards: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {**FLOW, "model__dropout": 0.1, "trainer__accumulate_grad_batches": 2}
    average = ["--trainer.callbacks+=lightning.pytorch.callbacks.EMAWeightAveraging", "--trainer.callbacks.decay=0.5"]
    train_to_the_end([*fit_arguments(shards, tmp_path / "unbroken", **options), *average])
    broken = [*fit_arguments(shards, tmp_path / "broken", **options), *average]
    train_and_kill(broken, tmp_path / "stands")
    train_to_the_end([*broken, "--ckpt_path=last"])
    for metric in ("train/loss", "train/loss_flow", "train/grad_norm"):
        expected, found = logged(tmp_path / "unbroken", metric), logged(tmp_path / "broken", metric, version=1)
        assert len(set(expected.values())) == STEPS or (metric == "train/loss_flow" and len(expected) == STEPS)
        assert found == {step: expected[step] for step in range(LAST_SAVED, STEPS)}
    ours, theirs = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("unbroken", "broken"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_bundle_of_an_averaged_run_holds_the_average(shards: Path, tmp_path: Path) -> None:
    """With a decay of 0 the average is the last model; with 1 it is the first."""
    average = "--trainer.callbacks=lightning.pytorch.callbacks.EMAWeightAveraging"
    weights = {}
    for name, extra in {
        "plain": [],
        "last": [average, "--trainer.callbacks.decay=0.0"],
        "first": [average, "--trainer.callbacks.decay=1.0"],
    }.items():
        run([*fit_arguments(shards, tmp_path / name, trainer__max_steps=3, **FLOW), *extra])
        weights[name] = load_file(tmp_path / name / "model" / "model.safetensors")
    assert all(torch.equal(weights["plain"][name], weights["last"][name]) for name in weights["plain"])
    assert any(not torch.equal(weights["plain"][name], weights["first"][name]) for name in weights["plain"])


def test_a_flow_begins_with_a_dense_bundle_and_leaves_the_frozen_side_as_it_was(shards: Path, tmp_path: Path) -> None:
    dense = fit_arguments(shards, tmp_path / "dense", trainer__max_steps=2)
    run(dense)
    flow = f"{{begin_with: {tmp_path / 'dense' / 'model'}, freeze_understanding: true}}"
    run(fit_arguments(shards, tmp_path / "flow", trainer__max_steps=3, **{**FLOW, "model__flow": flow}))
    before, after = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("dense", "flow"))
    changed = 0
    for name, tensor in after.items():
        own = name.replace(".understanding.", ".").replace(".generation.", ".")
        if name.startswith("flow."):
            continue
        if ".generation." in name:
            changed += not torch.equal(tensor, before[own])
        else:
            assert torch.equal(tensor, before[own]), name
    assert changed == sum(".generation." in name for name in after)
    answers = load(tmp_path / "flow" / "model").generate(["a red picture"], mode="image", steps=2)
    assert len(answers[0]) == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"model__flow": "{weight: -1}"}, "weight of a flow"),
        ({"model__flow": "{mixture: false, freeze_understanding: true}"}, "needs a mixture"),
        ({"model__flow": "{freeze_understanding: true}"}, "needs begin_with"),
        ({"model__flow": "{seed: -1}"}, "seed of a flow"),
        ({"data__templates__latents__drop_clean": 2}, "shares lie between 0 and 1"),
    ],
)
def test_wrong_settings_of_a_flow_are_one_line(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any], reason: str
) -> None:
    assert reason in refusal(fit_arguments(shards, tmp_path, **{**FLOW, **options}), capsys)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"model__dim": 32}, "its dim is 16"),
        ({"model__norm_placement": "swin"}, "its norm_placement is swin"),
        ({"model__num_layers": 3}, "its num_layers is 3"),
    ],
)
def test_a_bundle_of_another_shape_is_not_begun_with(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any], reason: str
) -> None:
    """What differs is named, also where the weights would fit and the function would not."""
    odd, plain = (
        (options, {}) if "model__norm_placement" in options or "model__num_layers" in options else ({}, options)
    )
    run(fit_arguments(shards, tmp_path / "dense", trainer__max_steps=1, **odd))
    flow = {"model__flow": f"{{begin_with: {tmp_path / 'dense' / 'model'}}}"}
    assert reason in refusal(fit_arguments(shards, tmp_path / "flow", **{**FLOW, **flow, **plain}), capsys)


def test_a_stream_restored_within_a_step_weighs_latents_as_the_unbroken_one(shards: Path) -> None:
    from torchdata.stateful_dataloader import StatefulDataLoader

    from data_pipelines.stream import PackedStream

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


def test_a_checkpoint_of_another_autoencoder_is_refused(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = fit_arguments(shards, tmp_path / "run", trainer__max_steps=4, **FLOW)
    run(arguments)
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    for other in ("of another", {"hash": "of another", "grid": 2}):  # the dict is of an older checkpoint
        torch.save({**checkpoint, "autoencoder": other}, tmp_path / "other.ckpt")
        line = refusal([*arguments, f"--ckpt_path={tmp_path / 'other.ckpt'}"], capsys)
        assert "latents of another autoencoder" in line


def test_predictions_read_the_latents(shards: Path, tmp_path: Path) -> None:
    from unimodal.training.module import TransformerModule

    run(fit_arguments(shards, tmp_path, trainer__max_steps=1, **FLOW))
    batch = batches(shards, 1)[0]
    module = TransformerModule(dim=16, flow=FlowTrainingConfig(), compile=False)
    module.transformer = load(tmp_path / "model", packed=False).transformer
    module._features = module.transformer.features
    packed = batch.media["latents"]
    moved = dataclasses.replace(batch, media={"latents": dataclasses.replace(packed, values=packed.values + 100)})
    before, after = (module._read(b, torch.Generator().manual_seed(0))[0] for b in (batch, moved))
    assert not torch.equal(before, after)
    assert module.predict_step(batch, 0).shape == batch.tokens.shape


def test_a_discrete_run_mixes_shards_with_and_without_latents(shards: Path, tmp_path: Path) -> None:
    plain = tiny_shards(tmp_path / "plain")
    data = TokenDataModule([str(shards), str(plain)], StreamConfig(length=48, rows=2))
    data.setup("fit")
    assert next(iter(data.train_dataloader())).media == {}
    flow = TokenDataModule([str(shards), str(plain)], data.stream, TemplateConfig(drawn="latents"))
    with pytest.raises(ValueError, match="holds no latents"):
        flow.setup("fit")


@pytest.mark.parametrize("half", sorted(FLOW))
def test_a_flow_and_its_templates_go_together(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], half: str
) -> None:
    assert "go together" in refusal(fit_arguments(shards, tmp_path, **{half: FLOW[half]}), capsys)


def test_shards_without_latents_are_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = tiny_shards(tmp_path / "plain")
    line = refusal(fit_arguments(plain, tmp_path / "run", **FLOW), capsys)
    assert "tokenize with --autoencoder" in line


LATENTS = MediaSpec(name="latents", width=3, sizing=LatentSpec(reduction=8, image_size=16), source="h")


def test_a_flow_config_says_its_shape() -> None:
    shape = FlowTrainingConfig(time_channels=8).shape({"latents": LATENTS})
    assert shape == {"mixture": True, "flow": FlowConfig(latent_dim=3, side=2, time_channels=8, autoencoder="h")}
    with pytest.raises(ValueError, match="hold none"):
        FlowTrainingConfig().shape({})
