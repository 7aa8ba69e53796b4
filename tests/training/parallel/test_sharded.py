"""FSDP2 on two processes: the losses, weights and checkpoints of one process."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.oracles.ranks import on_ranks
from tests.oracles.tiny import tiny_shards
from tests.oracles.tiny_training import (
    ADAMW,
    FLOW,
    VISION,
    Options,
    finish,
    fit_arguments,
    kill,
    losses,
    start_training,
    wait_for,
)
from unimodal.cli import main as command
from unimodal.training.cli import main

SHARDED: Options = {"trainer__devices": 2, "trainer__strategy": "sharded"}
LOSS_FILE = "tests.oracles.tiny_training.LossFile"
GRADIENT_FILE = "tests.oracles.tiny_training.GradientFile"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_shards(tmp_path_factory.mktemp("data") / "shards", latents=True, patch=4)


def arguments(shards: Path, root: Path, **options: str | float) -> list[str]:
    given = fit_arguments(shards, root, **options)
    gradients = [f"--trainer.callbacks+={GRADIENT_FILE}", f"--trainer.callbacks.path={root / 'gradients'}"]
    return [*given, f"--trainer.callbacks+={LOSS_FILE}", f"--trainer.callbacks.path={root / 'losses'}", *gradients]


def train(shards: Path, root: Path, *more: str, **options: str | float) -> list[float]:
    """The losses of a whole run."""
    root.mkdir(parents=True, exist_ok=True)
    process = start_training([*arguments(shards, root, **options), *more])
    output = finish(process, 240)
    assert process.returncode == 0, output
    return [float.fromhex(loss) for _, loss in losses(root / "losses")]


MODELS: dict[str, Options] = {
    "discrete": {},
    "flow": FLOW,
    "vision": VISION,
    "multi-token": {"model__multi_token": "{depth: 2, kind: sequential}"},
    "experts": {"model__trunk__moe": "{experts: 5, top_k: 2, hidden_dim: 16, bias_by: modality}"},
}
OPTIMIZERS: dict[str, Options] = {"muon": {}, "adamw": ADAMW}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "optimizer"),
    [
        ("discrete", "muon"),
        pytest.param("discrete", "adamw", marks=pytest.mark.ranks),
        pytest.param("flow", "muon", marks=pytest.mark.ranks),
        pytest.param("vision", "adamw", marks=pytest.mark.ranks),
        pytest.param("multi-token", "muon", marks=pytest.mark.ranks),
        pytest.param("experts", "muon", marks=pytest.mark.ranks),
    ],
)
def test_ten_losses_are_those_of_one_rank_however_the_step_is_shared(
    shards: Path, tmp_path: Path, model: str, optimizer: str
) -> None:
    """In float64: 4 batches a step on one rank, or 2 each on two ranks under DDP or FSDP2, or one of four rows, but for
    a flow, whose noise is drawn batch by batch. The gradients of the first step are the same too."""
    shared: Options = {**MODELS[model], **OPTIMIZERS[optimizer], "trainer__precision": "64-true"}
    shared |= {"trainer__max_steps": 10, "data__stream__rows": 1, "trainer__gradient_clip_val": 1.0}
    alone = train(shards, tmp_path / "one", **shared, trainer__accumulate_grad_batches=4)
    assert len(alone) == 10
    ways: dict[str, Options] = {
        strategy: {**SHARDED, "trainer__strategy": strategy, "trainer__accumulate_grad_batches": 2}
        for strategy in ("ddp", "sharded")
    }
    if model != "flow":
        ways["large"] = {"data__stream__rows": 4}
    for name, options in ways.items():
        assert train(shards, tmp_path / name, **{**shared, **options}) == pytest.approx(alone, rel=1e-8), name
    expected = load_file(tmp_path / "one" / "model" / "model.safetensors")
    gradients = load_file(tmp_path / "one" / "gradients")
    assert len(gradients) >= len([name for name in expected if not name.endswith("router.bias")])
    for way in ways:
        found = load_file(tmp_path / way / "model" / "model.safetensors")
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
        others = load_file(tmp_path / way / "gradients")
        assert others.keys() == gradients.keys()
        for name, tensor in gradients.items():
            assert (others[name] - tensor).norm() <= 1e-10 * tensor.norm(), (way, name)


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("model", "parallel"),
    [
        ({"model__trunk__tied_head": "true"}, {"model__parallel__activation_checkpointing": "block"}),
        ({}, {"model__parallel__activation_checkpointing": "selective", "model__parallel__replicate": 2}),
    ],
    ids=["tied, block", "copies, selective"],
)
def test_other_ways_to_lay_out_a_model_change_no_loss(
    shards: Path, tmp_path: Path, model: Options, parallel: Options
) -> None:
    """Against one rank that keeps all activations."""
    shared: Options = {"trainer__precision": "64-true", "trainer__max_steps": 4, **model}
    alone = train(shards, tmp_path / "one", **shared, trainer__accumulate_grad_batches=2)
    assert train(shards, tmp_path / "two", **{**shared, **parallel, **SHARDED}) == pytest.approx(alone, rel=1e-8)


@pytest.mark.ranks
def test_a_killed_run_resumes_on_two_ranks_and_on_one(shards: Path, tmp_path: Path) -> None:
    shared: Options = {"trainer__max_steps": 12, "checkpoint__every_n_train_steps": 2}
    unbroken = train(shards, tmp_path / "unbroken", **{**shared, **SHARDED})
    for step in (3,):
        root = tmp_path / f"killed-{step}"
        root.mkdir()
        standstill = ["--trainer.callbacks+=tests.oracles.tiny_training.Standstill", f"--trainer.callbacks.step={step}"]
        flag = root / "flag"
        process = start_training(
            [*arguments(shards, root, **{**shared, **SHARDED}), *standstill, f"--trainer.callbacks.flag={flag}"]
        )
        wait_for(process, flag)
        kill(process)
        shutil.copytree(root, tmp_path / f"alone-{step}")
        last = (step - 1) // 2 * 2  # it stood still before the checkpoint of that step
        for folder, ways in (
            (root, SHARDED),
            (tmp_path / f"alone-{step}", {"trainer__strategy": "sharded", "trainer__accumulate_grad_batches": 2}),
        ):
            (folder / "losses").unlink()
            found = train(shards, folder, "--ckpt_path=last", **{**shared, **ways})
            assert found == pytest.approx(unbroken[last:], rel=1e-6)


@pytest.mark.ranks
@pytest.mark.parametrize("strategy", ["ddp", "sharded"])
def test_told_to_stop_two_ranks_end_after_the_same_step_with_its_checkpoint(
    shards: Path, tmp_path: Path, strategy: str
) -> None:
    """The first of them gets the signal. The losses until then and those after resuming are the unbroken run's."""
    options: Options = {**SHARDED, "trainer__strategy": strategy, "checkpoint__every_n_train_steps": 1000}
    options |= {"trainer__max_steps": 40, "model__schedule__decay": "constant"}
    unbroken = train(shards, tmp_path / "unbroken", **options)
    root = tmp_path / "stopped"
    root.mkdir()
    process = start_training(arguments(shards, root, **options))
    deadline = time.monotonic() + 120
    while len(losses(root / "losses")) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.terminate()
    output = finish(process, 120)
    assert process.returncode == 143, output
    before = [float.fromhex(loss) for _, loss in losses(root / "losses")]
    assert 3 <= len(before) < 40, "it was not stopped on the way"
    (root / "losses").unlink()
    if strategy == "sharded":  # killed between taking the old checkpoint away and putting the new one there
        (root / "checkpoints" / "last.ckpt").rename(root / "checkpoints" / "last.ckpt.old")
    after = train(shards, root, "--ckpt_path=last", **options)
    assert [*before, *after] == pytest.approx(unbroken, rel=1e-6)


@pytest.mark.slow
def test_an_image_tokenizer_is_not_sharded_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ["--config=configs/tokenizer/demo.yaml", f"--trainer.default_root_dir={tmp_path}"]
    with pytest.raises(SystemExit) as ended:
        main(["fit", *config, "--trainer.strategy=sharded"])
    assert ended.value.code == 2
    assert "image tokenizers train under ddp" in capsys.readouterr().err


@pytest.mark.slow
def test_a_checkpoint_of_two_ranks_becomes_a_bundle_and_is_refused_by_name_elsewhere(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: Options = {"trainer__max_steps": 4, **SHARDED}
    train(shards, tmp_path / "run", **options)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert command(["bundle", str(last), "--tokenizers", str(shards), "--out", str(tmp_path / "bundle")]) == 0
    made, left = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "bundle", tmp_path / "run" / "model")
    )
    assert made.keys() == left.keys() and all(torch.equal(made[name], left[name]) for name in left)
    capsys.readouterr()
    alone = start_training([*fit_arguments(shards, tmp_path / "run", trainer__max_steps=6), f"--ckpt_path={last}"])
    output = finish(alone, 120)
    assert alone.returncode == 2 and "resume with --trainer.strategy sharded" in output, output
    (last / ".metadata").write_bytes(b"cos\\nsystem\\n(S'touch /tmp/owned'\\ntR.")
    assert command(["bundle", str(last), "--tokenizers", str(shards), "--out", str(tmp_path / "other")]) == 2
    assert "cannot be read as a checkpoint" in capsys.readouterr().err


@pytest.mark.slow
def test_a_bundle_is_the_start_of_a_sharded_run(shards: Path, tmp_path: Path) -> None:
    train(shards, tmp_path / "first", trainer__max_steps=3)
    start: Options = {"model__start__bundle": str(tmp_path / "first" / "model"), "trainer__max_steps": 3}
    start |= {"trainer__precision": "64-true"}
    alone = train(shards, tmp_path / "alone", **start, trainer__accumulate_grad_batches=2)
    assert train(shards, tmp_path / "two", **{**start, **SHARDED}) == pytest.approx(alone, rel=1e-8)


@pytest.mark.ranks
def test_samples_are_drawn_by_a_model_gathered_from_both_ranks(shards: Path, tmp_path: Path) -> None:
    """Without the gathering both ranks would wait for each other for ever."""
    train(shards, tmp_path, **SHARDED, trainer__max_steps=2, samples__every=2, data__validation_share=0.5)
    assert (tmp_path / "samples" / "answers-000002.txt").is_file()


@pytest.mark.slow
def test_a_model_is_built_on_the_meta_device_and_only_shards_take_memory(tmp_path: Path) -> None:
    """On one of two ranks of a model of 1.5 GiB: the first weights cost its half, and one whole tensor at a time."""
    done = on_ranks(BUILDING, tmp_path, 2, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(rows) == 2
    for row in rows:
        assert row["grown"] < row["whole"] / 2 + 2 * row["largest"] + 100 * 2**20


BUILDING = """
import json, resource
import torch, torch.distributed as dist
from unimodal.model.config import ModelConfig, TransformerConfig
from unimodal.model.model import UnifiedModel
from unimodal.training.parallel.sharding import ParallelConfig, first_weights, rank_mesh, shard
dist.init_process_group("gloo")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
with torch.device("meta"):
    trunk = TransformerConfig(dim=1024, num_layers=24, num_heads=8, hidden_dim=4096)
    model = UnifiedModel(ModelConfig(vocab_size=8192, trunk=trunk))
device = torch.device("cpu")
shard(model, rank_mesh(ParallelConfig(), device), device, None)
first_weights(model)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
sizes = [4 * parameter.numel() for parameter in model.parameters()]
print(json.dumps({"grown": grown, "whole": sum(sizes), "largest": max(sizes)}), flush=True)
dist.barrier()
dist.destroy_process_group()
"""
