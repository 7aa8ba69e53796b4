"""Training the flow branch: ranks and accumulation, resuming, averaging, freezing, bundles, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data_pipelines.datamodule import TokenDataModule
from data_pipelines.planning import StreamConfig
from data_pipelines.templates import TemplateConfig
from tests.oracles.tiny import tiny_shards
from tests.oracles.tiny_training import ADAMW, FLOW, Options, fit_arguments, flow_objectives, logged, weights_after
from tests.training.test_resume import LAST_SAVED, STEPS, refusal, train_and_kill, train_to_the_end
from tokenizers_vq.media import LatentSpec, MediaSpec
from unimodal.generation.pipeline import load
from unimodal.model.config import FlowConfig
from unimodal.training.branches import FlowBranchConfig
from unimodal.training.cli import run


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_shards(tmp_path_factory.mktemp("data") / "shards", latents=True)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["no image", "no text"])
def test_a_pack_without_an_image_or_without_text_trains(shards: Path, tmp_path: Path, what: str) -> None:
    share = {"no image": 1.0, "no text": 0.0}[what]
    options = {**FLOW, "data__templates__image_first": share, "data__templates__prompt_weight": 0.0}
    run(fit_arguments(shards, tmp_path, trainer__max_steps=2, **options))
    assert all(float(value) == float(value) for value in logged(tmp_path, "train/loss").values())


@pytest.mark.ranks
def test_two_processes_train_the_flow_as_one_that_accumulates_their_batches(shards: Path, tmp_path: Path) -> None:
    shared = {"trainer__max_steps": 2, **FLOW, **ADAMW}
    one = fit_arguments(shards, tmp_path / "one", trainer__accumulate_grad_batches=2, **shared)
    two = fit_arguments(shards, tmp_path / "two", trainer__devices=2, trainer__strategy="ddp", **shared)
    alone, together = weights_after((one, tmp_path / "one"), (two, tmp_path / "two"))
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=0, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.slow
def test_a_killed_run_with_averaged_weights_goes_on_exactly(shards: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {**FLOW, "model__trunk__dropout": 0.1, "trainer__accumulate_grad_batches": 2}
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_flow_starts_from_a_dense_bundle_and_leaves_the_frozen_expert_as_it_was(shards: Path, tmp_path: Path) -> None:
    dense = fit_arguments(shards, tmp_path / "dense", trainer__max_steps=2)
    run(dense)
    start: Options = {
        "model__start__bundle": str(tmp_path / "dense" / "model"),
        "model__start__freeze": "['*.understanding.*', trunk.embedding.*, heads.tokens.*]",
    }
    run(fit_arguments(shards, tmp_path / "flow", trainer__max_steps=3, **FLOW, **start))
    before, after = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("dense", "flow"))
    changed = 0
    for name, tensor in after.items():
        own = name.replace(".understanding.", ".").replace(".generation.", ".")
        if name.startswith(("branches.latents.", "heads.velocity.")):
            continue
        if ".generation." in name:
            changed += not torch.equal(tensor, before[own])
        else:
            assert torch.equal(tensor, before[own]), name
    assert changed == sum(".generation." in name for name in after)
    answers = load(tmp_path / "flow" / "model").generate(["a red picture"], mode="image", steps=2)
    assert len(answers[0]) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (flow_objectives(weight=-1), "weight of a flow"),
        ({"model__start__freeze": "['*.understanding.*']"}, "start.freeze would keep random weights"),
        (flow_objectives(seed=-1), "seed of a flow"),
        ({"data__templates__latents__drop_clean": 2}, "shares lie between 0 and 1"),
    ],
)
def test_wrong_settings_of_a_flow_are_one_line(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any], reason: str
) -> None:
    assert reason in refusal(fit_arguments(shards, tmp_path, **{**FLOW, **options}), capsys)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"model__trunk__dim": 32}, "its dim is 16"),
        ({"model__trunk__norm_placement": "swin"}, "its norm_placement is swin"),
        ({"model__trunk__num_layers": 3}, "its num_layers is 3"),
    ],
)
def test_a_bundle_of_another_architecture_is_refused(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any], reason: str
) -> None:
    """What differs is named, also where the weights would fit and the function would not."""
    odd, plain = ({}, options) if "model__trunk__dim" in options else (options, {})
    run(fit_arguments(shards, tmp_path / "dense", trainer__max_steps=1, **odd))
    bundle = {"model__start__bundle": str(tmp_path / "dense" / "model")}
    assert reason in refusal(fit_arguments(shards, tmp_path / "flow", **FLOW, **bundle, **plain), capsys)


@pytest.mark.slow
def test_a_checkpoint_of_another_autoencoder_is_refused(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = fit_arguments(shards, tmp_path / "run", trainer__max_steps=4, **FLOW)
    run(arguments)
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert list(checkpoint["media"]) == ["latents"]
    torch.save({**checkpoint, "media": {"latents": "of another"}}, tmp_path / "other.ckpt")
    line = refusal([*arguments, f"--ckpt_path={tmp_path / 'other.ckpt'}"], capsys)
    assert "latents of another autoencoder" in line


def test_a_discrete_run_mixes_shards_with_and_without_latents(shards: Path, tmp_path: Path) -> None:
    plain = tiny_shards(tmp_path / "plain")
    data = TokenDataModule([str(shards), str(plain)], StreamConfig(length=48, rows=2))
    data.setup("fit")
    assert next(iter(data.train_dataloader())).media == {}
    flow = TokenDataModule([str(shards), str(plain)], data.stream, TemplateConfig(drawn="latents"))
    with pytest.raises(ValueError, match="holds no latents"):
        flow.setup("fit")


@pytest.mark.parametrize(
    ("half", "reason"),
    [
        ("model__flow", "model.flow trains on latents, and the data gives none: set data.templates.drawn to latents"),
        ("data__templates__drawn", "model.flow goes with data.templates.drawn latents"),
        ("model__objectives", "FlowMatching trains the branch of latents: set model.flow"),
    ],
)
def test_a_flow_its_templates_and_its_objective_go_together(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], half: str, reason: str
) -> None:
    assert reason in refusal(fit_arguments(shards, tmp_path, **{half: FLOW[half]}), capsys)


@pytest.mark.slow
def test_shards_without_latents_are_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = tiny_shards(tmp_path / "plain")
    line = refusal(fit_arguments(plain, tmp_path / "run", **FLOW), capsys)
    assert "tokenize with --autoencoder" in line


LATENTS = MediaSpec(name="latents", width=3, sizing=LatentSpec(reduction=8, image_size=16), source="h")


def test_a_flow_branch_takes_width_grid_and_autoencoder_from_the_data() -> None:
    config = FlowBranchConfig(time_channels=8, pos_embed_period=10.0, axial_rope_max=2.0)
    assert config.to_model_config({"latents": LATENTS}) == FlowConfig(
        latent_dim=3, grid_size=2, time_channels=8, pos_embed_period=10.0, axial_rope_max=2.0, autoencoder="h"
    )
    with pytest.raises(ValueError, match="the data gives none"):
        FlowBranchConfig().to_model_config({})
