"""LoRA: adapters alone are trained, resume exactly, and a bundle holds their products in plain weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.oracles.passes import logits
from tests.oracles.tiny import tiny_model, tiny_shards
from tests.oracles.tiny_training import Options, finish, fit_arguments, losses, start_training
from unimodal.commands.bundle import run as bundle_of
from unimodal.model.checkpoint import open_model
from unimodal.training.cli import main, run
from unimodal.training.lora import LoraSettings, add_adapters, has_adapters, lora_targets, without_adapters
from unimodal.training.start import StartConfig

pytest.importorskip("peft")

TARGETS = ("trunk.blocks.*.q_proj", "trunk.blocks.*.down_proj")
LORA: Options = {
    "model__start__lora": f'{{rank: 4, alpha: 8, dropout: 0.1, targets: ["{TARGETS[0]}", "{TARGETS[1]}"]}}',
    "model__optimizer": "AdamWConfig",
    "model__optimizer__learning_rate": 0.02,
    "model__schedule__decay": "constant",
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def start(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("start")
    run(fit_arguments(shards, root, trainer__max_steps=3))
    return root / "model"


def adapted(shards: Path, root: Path, start: Path, **options: str | float) -> list[str]:
    root.mkdir(parents=True, exist_ok=True)
    callback = ["--trainer.callbacks+=tests.oracles.tiny_training.LossFile"]
    settings = {**LORA, "model__start__bundle": str(start), **options}
    return [*fit_arguments(shards, root, **settings), *callback, f"--trainer.callbacks.path={root / 'losses'}"]


def test_adapters_start_at_nothing_and_merge_to_the_same_answers() -> None:
    torch.manual_seed(0)
    model, plain = tiny_model().eval(), tiny_model().eval()
    plain.load_state_dict(model.state_dict())
    ids = torch.randint(7, 24, (2, 9))
    settings = LoraSettings(rank=4, alpha=12)
    model.requires_grad_(False)  # as a start does where nothing else is trained
    assert not has_adapters(model)
    add_adapters(model, settings)
    assert has_adapters(model) and len(lora_targets(plain, settings)) == 7 * len(plain.trunk.blocks)
    assert torch.equal(logits(model, ids), logits(plain, ids))
    taken = [name for name, each in model.named_parameters() if each.requires_grad]
    assert taken and all(".lora_" in name for name in taken)
    for name in taken:
        torch.nn.init.normal_(model.get_parameter(name), std=0.3)
    whole = without_adapters(model).eval()
    assert not has_adapters(whole) and dict(whole.named_parameters()).keys() == dict(plain.named_parameters()).keys()
    torch.testing.assert_close(logits(whole, ids), logits(model, ids), rtol=1e-4, atol=1e-5)
    assert (logits(whole, ids) - logits(plain, ids)).abs().max() > 0.01
    layer = "trunk.blocks.0.attention.qkv.k_proj"
    a, b = (model.get_parameter(f"{layer}.lora_{part}.default.weight") for part in "AB")
    expected = plain.get_parameter(f"{layer}.weight") + 12 / 4 * b @ a
    torch.testing.assert_close(whole.get_parameter(f"{layer}.weight"), expected)


@pytest.mark.slow
def test_a_run_trains_adapters_alone_and_its_bundle_opens_as_any_other(
    shards: Path, start: Path, tmp_path: Path
) -> None:
    validated: Options = {"trainer__limit_val_batches": 1.0, "trainer__val_check_interval": 6, "ema__decay": 0.5}
    validated |= {"trainer__check_val_every_n_epoch": "null", "data__validation_share": 0.4, "samples__every": 6}
    run(adapted(shards, tmp_path, start, trainer__max_steps=12, **validated))
    before, after = (load_file(folder / "model.safetensors") for folder in (start, tmp_path / "model"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        adapts = name.endswith((".q_proj.weight", ".down_proj.weight"))
        assert torch.equal(tensor, after[name]) is not adapts, name
    assert not has_adapters(open_model(tmp_path / "model")[0])
    bundle_of(tmp_path / "checkpoints" / "last.ckpt", shards, tmp_path / "of_checkpoint")
    of_checkpoint = load_file(tmp_path / "of_checkpoint" / "model.safetensors")
    assert all(torch.equal(of_checkpoint[name], after[name]) for name in after)
    found = [float.fromhex(loss) for _, loss in losses(tmp_path / "losses")]
    assert found[-1] < found[0]


@pytest.mark.slow
def test_a_run_with_adapters_resumes_as_the_unbroken_one(shards: Path, start: Path, tmp_path: Path) -> None:
    run(adapted(shards, tmp_path / "whole", start, trainer__max_steps=8))
    run(adapted(shards, tmp_path / "two", start, trainer__max_steps=4))
    run([*adapted(shards, tmp_path / "two", start, trainer__max_steps=8), "--ckpt_path=last"])
    assert losses(tmp_path / "two" / "losses") == losses(tmp_path / "whole" / "losses")
    found, expected = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("two", "whole"))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_rows_of_images_are_trained_beside_adapters(shards: Path, start: Path, tmp_path: Path) -> None:
    rows: Options = {"model__start__trainable": '["heads.tokens.weight"]', "model__start__trainable_rows": "image"}
    run(adapted(shards, tmp_path, start, trainer__max_steps=4, model__optimizer__weight_decay=0.0, **rows))
    before, after = (load_file(folder / "model.safetensors") for folder in (start, tmp_path / "model"))
    moved = (before["heads.tokens.weight"] != after["heads.tokens.weight"]).any(-1)
    assert moved.any() and not moved[:7].any()
    assert torch.equal(before["trunk.embedding.weight"], after["trunk.embedding.weight"])


@pytest.mark.ranks
def test_two_ranks_train_one_adapter(shards: Path, start: Path, tmp_path: Path) -> None:
    found = []
    for ranks, rows in ((1, 4), (2, 2)):
        options: Options = {"trainer__devices": ranks, "trainer__max_steps": 4, "data__stream__rows": rows}
        options |= {"trainer__strategy": "ddp" if ranks == 2 else "auto", "trainer__precision": "64-true"}
        options["model__start__lora"] = f'{{rank: 4, targets: ["{TARGETS[0]}"]}}'
        process = start_training(adapted(shards, tmp_path / str(ranks), start, **options))
        output = finish(process, 240)
        assert process.returncode == 0, output
        found.append([float.fromhex(loss) for _, loss in losses(tmp_path / str(ranks) / "losses")])
    assert found[0] == pytest.approx(found[1], rel=1e-8) and len(found[0]) == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model__start__lora": '{targets: ["trunk.layers.*"]}'}, "start.lora.targets: no linear layer is called"),
        ({"model__start__lora": "{rank: 0}"}, "a rank of at least 1"),
        ({"model__start__lora": "{dropout: 1.0}"}, "start.lora.dropout lies between 0 and 1"),
        ({"model__start__freeze": '["trunk.*"]'}, "no start.freeze"),
        ({"trainer__strategy": "sharded"}, "start.lora is for one device or ddp"),
    ],
)
def test_adapters_that_cannot_be_are_one_line(
    options: Options, words: str, shards: Path, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(adapted(shards, tmp_path, start, **options))
    assert end.value.code == 2 and words in capsys.readouterr().err.strip().splitlines()[-1]


def test_adapters_want_a_bundle() -> None:
    with pytest.raises(ValueError, match=r"name start\.bundle"):
        StartConfig(lora=LoraSettings())


def test_the_package_that_is_missing_is_named(
    shards: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(SystemExit) as end:
        main(adapted(shards, tmp_path, start))
    assert end.value.code == 2 and "pip install 'unimodal[lora]'" in capsys.readouterr().err
