"""Checkpoints of the version with one flat module resume: every later loss is that of the unbroken run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.oracles.old_checkpoints import as_old, old_name
from tests.oracles.tiny import tiny_model, tiny_shards
from tests.oracles.tiny_training import ADAMW, FLOW, VISION, Options, fit_arguments, losses
from tests.training.test_resume import refusal
from tokenizers_vq.media import PatchSpec
from unimodal.model.config import FlowConfig, VisionConfig
from unimodal.model.old_names import state_name
from unimodal.training.cli import run

SAVED, STEPS = 4, 8
WHOLE: Options = {**FLOW, **VISION, "model__trunk__dropout": 0.1, "trainer__max_steps": STEPS}
AVERAGE = ["--trainer.callbacks+=lightning.pytorch.callbacks.EMAWeightAveraging", "--trainer.callbacks.decay=0.5"]
KINDS: dict[str, tuple[Options, list[str]]] = {
    "muon": (WHOLE, []),
    "adamw": ({**WHOLE, **ADAMW}, []),
    "averaged": (WHOLE, AVERAGE),
    "discrete": ({"trainer__max_steps": STEPS}, []),
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_shards(tmp_path_factory.mktemp("data") / "shards", latents=True, patch=4)


def train(shards: Path, root: Path, kind: str, *more: str) -> Any:
    options, callbacks = KINDS[kind]
    file = f"--trainer.callbacks.path={root.with_suffix('.losses')}"
    noting = ["--trainer.callbacks+=tests.oracles.tiny_training.LossFile", file]
    return run([*fit_arguments(shards, root, checkpoint__save_top_k=-1, **options), *noting, *callbacks, *more])


def numbered(cli: Any) -> list[str]:
    """The parameters of a run's model in the order of its optimizer's groups."""
    names = {id(parameter): name for name, parameter in cli.model.model.named_parameters()}
    return [names[id(p)] for group in cli.trainer.optimizers[0].param_groups for p in group["params"]]


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_an_old_checkpoint_resumes_with_the_losses_of_the_unbroken_run(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    cli = train(shards, tmp_path / "unbroken", kind)
    expected = losses(tmp_path / "unbroken.losses")
    assert len(set(expected)) == STEPS
    checkpoint = torch.load(tmp_path / "unbroken" / "checkpoints" / f"epoch=0-step={SAVED}.ckpt", weights_only=True)
    source = checkpoint["media"].get("latents")
    autoencoder = {"hash": source, "grid": 2, "latent_dim": 3} if source else None
    old = as_old(checkpoint, numbered(cli), autoencoder)
    assert all(name.startswith("transformer.") for name in old["state_dict"])
    ours, theirs = (each["optimizer_states"][0]["state"] for each in (checkpoint, old))
    assert ours.keys() == theirs.keys()
    assert (kind == "discrete") == all(value is theirs[number] for number, value in ours.items()), "other numbers"
    torch.save(old, tmp_path / "old.ckpt")
    train(shards, tmp_path / "resumed", kind, f"--ckpt_path={tmp_path / 'old.ckpt'}")
    assert losses(tmp_path / "resumed.losses") == expected[SAVED:]
    if source:
        torch.save({**old, "autoencoder": {**(autoencoder or {}), "hash": "another"}}, tmp_path / "other.ckpt")
        arguments = fit_arguments(shards, tmp_path / "refused", **KINDS[kind][0])
        line = refusal([*arguments, f"--ckpt_path={tmp_path / 'other.ckpt'}"], capsys)
        assert "latents of another autoencoder" in line


@pytest.mark.slow
def test_a_checkpoint_of_other_media_is_refused_in_one_line(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(fit_arguments(shards, tmp_path / "run", trainer__max_steps=4))
    resumed = [*fit_arguments(shards, tmp_path / "run", **FLOW), "--ckpt_path=last"]
    assert "was trained on no media, the data's templates give latents" in refusal(resumed, capsys)


def test_the_table_of_names_leads_back_for_every_parameter() -> None:
    flow = FlowConfig(latent_dim=3, grid_size=2, time_channels=8)
    patches = PatchSpec(size=4, max_patches=16, max_side=8)
    vision = VisionConfig(patches=patches, grid_size=4, dim=8, num_layers=1, num_heads=2, hidden_dim=12)
    for mixture in (False, True):
        for name in tiny_model(flow=flow, vision=vision, mixture=mixture, qkv_bias=True).state_dict():
            old = old_name(f"model.{name}").removeprefix("transformer.")
            assert old != name and state_name(old) == state_name(name) == name
