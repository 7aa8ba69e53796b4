"""Training with a ViT: what it sees, where its weights begin, resuming, and settings that do not go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import SiglipVisionConfig, SiglipVisionModel

from tests.oracles.seeing import learns_to_name_what_it_sees
from tests.oracles.tiny import tiny_picture, tiny_shards
from tests.oracles.tiny_training import ADAMW, FLOW, VISION, Options, fit_arguments, logged, weights_after
from tests.training.test_resume import LAST_SAVED, STEPS, refusal, train_and_kill, train_to_the_end
from tokenizers_vq.media import MediaSpec, PatchSpec
from unimodal.interop.architectures.siglip import siglip_names
from unimodal.training.branches import VisionBranchConfig
from unimodal.training.cli import run

SEEN: Options = {**FLOW, **VISION}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_shards(tmp_path_factory.mktemp("data") / "shards", latents=True, patch=4)


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("siglip")
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24}
    shape |= {"num_hidden_layers": 2, "num_attention_heads": 2}
    SiglipVisionModel(SiglipVisionConfig(**shape, image_size=12, patch_size=4)).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_model_learns_to_name_what_it_sees(shards: Path, tmp_path: Path) -> None:
    """Codes are nowhere read, so answers that are right come through the ViT."""
    pipeline = learns_to_name_what_it_sees(shards, tmp_path, **SEEN)
    blind = pipeline.generate([[tiny_picture(0), "what color is it?"]] * 8, mode="text", temperature=0.0)
    assert all(answer == blind[0] for answer in blind)


@pytest.mark.slow
def test_a_killed_run_goes_on_exactly(shards: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {**SEEN, "model__trunk__dropout": 0.1}
    train_to_the_end(fit_arguments(shards, tmp_path / "unbroken", **options))
    broken = fit_arguments(shards, tmp_path / "broken", **options)
    train_and_kill(broken, tmp_path / "stands")
    train_to_the_end([*broken, "--ckpt_path=last"])
    expected, found = logged(tmp_path / "unbroken", "train/loss"), logged(tmp_path / "broken", "train/loss", version=1)
    assert found == {step: expected[step] for step in range(LAST_SAVED, STEPS)}


@pytest.mark.slow
@pytest.mark.parametrize("image_first", [pytest.param(1.0, marks=pytest.mark.ranks), 0.0])
def test_two_processes_train_as_one_that_accumulates_their_batches(
    shards: Path, tmp_path: Path, image_first: float
) -> None:
    """Also where no picture is to be seen: weights without a gradient would stop the other rank."""
    shared: dict[str, Any] = {"trainer__max_steps": 2, **SEEN, **ADAMW, "data__templates__image_first": image_first}
    shared["data__templates__latents__whole"] = 0.0
    one = fit_arguments(shards, tmp_path / "one", trainer__accumulate_grad_batches=2, **shared)
    two = fit_arguments(shards, tmp_path / "two", trainer__devices=2, trainer__strategy="ddp", **shared)
    alone, together = weights_after((one, tmp_path / "one"), (two, tmp_path / "two"))
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=0, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [True, False])
def test_a_vit_starts_from_a_siglip_folder(shards: Path, tmp_path: Path, siglip: Path, frozen: bool) -> None:
    start: Options = {"model__vision": "{}", "model__start__vision": str(siglip)}
    if frozen:
        start["model__start__freeze"] = "[branches.patches.encoder.*]"
    run(fit_arguments(shards, tmp_path, trainer__max_steps=3, **{**SEEN, **start}))
    after, theirs = load_file(tmp_path / "model" / "model.safetensors"), load_file(siglip / "model.safetensors")
    same = []
    for ours, name in siglip_names(2).items():
        found = next(tensor for own, tensor in theirs.items() if own.endswith(name))
        own = after[f"branches.patches.encoder.{ours}"]
        same.append(torch.equal(own, found.reshape(own.shape)))
    assert all(same) if frozen else sum(same) < len(same) / 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"data__templates__seen": "codes"}, "the data gives none: set data.templates.seen to patches"),
        ({"model__vision": "null"}, "model.vision with data.templates.seen patches"),
        ({"model__start__freeze": "[branches.patches.encoder.*]"}, "start.freeze would keep random weights"),
        ({"model__vision": "{num_heads: 3}"}, "heads that divide its width"),
        ({"model__start__vision": "nowhere"}, "does not hold a SigLIP model"),
        ({"data__templates__patch_size": 8}, "those for patches of 4"),
        ({"model__vision": "{num_heads: 0}"}, "heads that divide its width"),
    ],
)
def test_wrong_settings_are_one_line(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any], reason: str
) -> None:
    assert reason in refusal(fit_arguments(shards, tmp_path, **{**SEEN, **options}), capsys)


@pytest.mark.slow
def test_a_siglip_of_other_patches_is_refused(tmp_path: Path, siglip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_shards(tmp_path / "shards", 4, latents=True, patch=8)
    options = {"data__templates__patch_size": 8, "model__start__vision": str(siglip)}
    assert "takes patches of 4 pixels" in refusal(fit_arguments(folder, tmp_path, **{**SEEN, **options}), capsys)


@pytest.mark.slow
def test_samples_are_written_while_it_trains(shards: Path, tmp_path: Path) -> None:
    run(fit_arguments(shards, tmp_path, trainer__max_steps=2, samples__every=1, **SEEN))
    for step in (1, 2):
        lines = (tmp_path / "samples" / f"answers-{step:06d}.txt").read_text().splitlines()
        assert any(line.startswith("what color is it? -> ") for line in lines)


@pytest.mark.slow
def test_compiled_steps_take_batches_without_a_picture(shards: Path, tmp_path: Path) -> None:
    unseen = {"data__templates__latents__whole": 0.0, "data__templates__image_first": 0.0}
    run(fit_arguments(shards, tmp_path, trainer__max_steps=2, model__compile="true", **{**SEEN, **unseen}))
    assert len(logged(tmp_path, "train/loss")) == 2


def test_positions_of_the_connector_are_ours_to_say(siglip: Path) -> None:
    media = {"patches": MediaSpec.of_patches(PatchSpec(size=4, max_patches=16, max_side=8))}
    found = VisionBranchConfig(pos_embed_period=10.0).to_model_config(media, siglip)
    assert (found.pos_embed_period, found.dim, found.grid_size) == (10.0, 16, 3)
