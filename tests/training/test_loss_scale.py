"""`precision: 16-mixed`: gradients are unscaled before they are divided, measured and clipped; an overflow lowers the
loss scale and is no fault of the run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.oracles.tiny import tiny_shards
from tests.oracles.tiny_training import ADAMW, Options, finish, fit_arguments, logged, start_training
from unimodal.training.cli import main
from unimodal.training.skipped import OVERFLOWS_IN_A_ROW, SKIPPED_IN_A_ROW, SkippedSteps

INF, NAN = float("inf"), float("nan")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_shards(tmp_path_factory.mktemp("data") / "shards")


def half(shards: Path, root: Path, scale: float, options: Options, interval: int = 2000, poison: str = "") -> list[str]:
    """Arguments of a run in float16; `poison` is `PLACE FIRST LAST`."""
    arguments = fit_arguments(
        shards, root, **{"trainer__max_steps": 4, "checkpoint__every_n_train_steps": 1, **options}
    )
    arguments += ["--trainer.callbacks+=tests.oracles.loss_scale.HalfOnCPU", f"--trainer.callbacks.scale={scale}"]
    arguments += [f"--trainer.callbacks.interval={interval}"]
    if poison:
        values = dict(zip(("place", "first", "last"), poison.split(), strict=True))
        arguments += ["--trainer.callbacks+=tests.oracles.poison.Poison"]
        arguments += [f"--trainer.callbacks.{name}={value}" for name, value in values.items()]
    return arguments


def numbers(root: Path, name: str, version: int = 0) -> list[float]:
    return [float(value) for value in logged(root, name, version).values()]


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [ADAMW, {}], ids=["adamw", "muon"])
def test_norm_clipping_and_division_take_unscaled_gradients(shards: Path, tmp_path: Path, optimizer: Options) -> None:
    """Scales are powers of two: the norms and weights of two of them are the same, and near those of float32."""
    clipped: Options = {"trainer__gradient_clip_val": 0.1, "trainer__accumulate_grad_batches": 2, **optimizer}
    for scale in (64, 1024):
        main(half(shards, tmp_path / str(scale), scale, clipped))
    main(fit_arguments(shards, tmp_path / "whole", trainer__max_steps=4, **clipped))
    norms = [numbers(tmp_path / name, "train/grad_norm") for name in ("64", "1024", "whole")]
    assert norms[0] == pytest.approx(norms[1], rel=2e-3) and norms[0] == pytest.approx(norms[2], rel=3e-2)
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("64", "1024")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=2e-2, atol=2e-3)


@pytest.mark.slow
def test_an_overflow_lowers_the_scale_and_is_counted_apart_from_faults(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At this scale the first gradients are infinite: more steps in a row are skipped than faults would end a run."""
    main(half(shards, tmp_path, 2.0**26, {"trainer__max_steps": 24, "checkpoint__save_top_k": -1, **ADAMW}))
    overflows, scales = numbers(tmp_path, "train/overflows"), numbers(tmp_path, "train/loss_scale")
    count = next(step for step, counted in enumerate(overflows) if counted == step)
    assert SKIPPED_IN_A_ROW < count < OVERFLOWS_IN_A_ROW and overflows[:count] == [*range(1, count + 1)]
    assert scales[:count] == [2.0**26 / 2**number for number in range(count)]
    assert set(numbers(tmp_path, "train/skipped_steps")) == {0.0}
    assert not (tmp_path / "skipped").exists(), "a batch is kept of a fault alone"
    output = " ".join(capsys.readouterr().out.split())
    assert output.count("overflow float16") == 1 and "is not written" not in output
    saved = sorted((tmp_path / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    assert len(saved) >= 24, "a step that overflowed does not keep a checkpoint from being written"
    before = torch.load(tmp_path / "checkpoints" / f"epoch=0-step={count - 1}.ckpt", weights_only=True)["state_dict"]
    first = torch.load(tmp_path / "checkpoints" / "epoch=0-step=1.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(before[name], first[name]) for name in first), "a skipped step changes no weight"


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_a_fault_under_a_loss_scale_too(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(half(shards, tmp_path, 64, {**ADAMW, "trainer__max_steps": 12}, poison="data 2 9"))
    assert ended.value.code == 3
    assert len(list((tmp_path / "skipped").iterdir())) == SKIPPED_IN_A_ROW


@pytest.mark.slow
def test_gradients_that_no_scale_makes_finite_end_the_run(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(half(shards, tmp_path, 64, {**ADAMW, "trainer__max_steps": 60}, poison="gradient 1 99"))
    assert ended.value.code == 3
    error = " ".join(capsys.readouterr().err.split())
    assert f"{OVERFLOWS_IN_A_ROW} steps in a row" in error and "use bf16-mixed" in error


@pytest.mark.slow
def test_the_scale_is_saved_and_restored(shards: Path, tmp_path: Path) -> None:
    """It is doubled each second step; a run that is resumed goes on with it, and with the number of sound steps."""
    main(half(shards, tmp_path / "unbroken", 8, {"trainer__max_steps": 7}, 2))
    unbroken = numbers(tmp_path / "unbroken", "train/loss_scale")
    assert unbroken == [8, 8, 16, 16, 32, 32, 64]
    main(half(shards, tmp_path / "two", 8, {"trainer__max_steps": 3}, 2))
    main([*half(shards, tmp_path / "two", 8, {"trainer__max_steps": 7}, 2), "--ckpt_path=last"])
    assert numbers(tmp_path / "two", "train/loss_scale") == unbroken[:3]
    assert numbers(tmp_path / "two", "train/loss_scale", 1) == unbroken[3:]


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize("strategy", ["ddp", "sharded"])
def test_ranks_skip_an_overflow_of_one_of_them_together_and_resume_with_its_scale(
    shards: Path, tmp_path: Path, strategy: str
) -> None:
    ranks: Options = {**ADAMW, "trainer__devices": 2, "trainer__strategy": strategy}
    for steps, more in ((4, []), (5, ["--ckpt_path=last"])):
        arguments = half(shards, tmp_path, 64, {**ranks, "trainer__max_steps": steps}, poison="gradient 1 2")
        process = start_training([*arguments, *more])
        output = finish(process, 240)
        assert process.returncode == 0, output
    assert numbers(tmp_path, "train/overflows") == [0, 1, 2, 2]
    assert numbers(tmp_path, "train/loss_scale") == [64, 64, 32, 16]
    assert numbers(tmp_path, "train/loss_scale", 1) == [16]


def test_what_is_an_overflow_and_what_a_fault() -> None:
    """norm, loss -> whether the step is skipped, faults and overflows so far."""
    steps = SkippedSteps()
    for norm, loss, expected in (
        (1.0, 1.0, (False, 0, 0)),
        (INF, 1.0, (True, 0, 1)),
        (NAN, 1.0, (True, 0, 2)),
        (1.0, NAN, (True, 1, 2)),
        (INF, INF, (True, 2, 2)),
        (1.0, 1.0, (False, 2, 2)),
    ):
        skipped = steps.skips(torch.tensor(norm), torch.tensor(loss), scaled=True)
        assert (skipped, steps.total, steps.overflows) == expected
    assert steps.in_a_row == steps.overflows_in_a_row == 0
    plain = SkippedSteps()
    assert plain.skips(torch.tensor(INF), torch.tensor(1.0)) and (plain.total, plain.overflows) == (1, 0)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "trainer.precision 16-mixed needs a GPU; on a CPU use bf16-mixed"),
        ({"model": "PolicyModule"}, "reinforcement learning clips gradients before the loss scale is taken out"),
    ],
)
def test_what_float16_cannot_do_is_refused_in_one_line(
    shards: Path, tmp_path: Path, options: Options, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if options:
        arguments = ["fit", "--config=configs/rl/drawings.yaml", f"--trainer.default_root_dir={tmp_path / 'run'}"]
        arguments += ["--trainer.precision=16-mixed"]
    else:
        arguments = fit_arguments(shards, tmp_path / "run", trainer__precision="16-mixed")
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert reason in error and "use bf16-mixed" in error and error.count("\n") == 1
