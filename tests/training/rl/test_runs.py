"""Whole runs of reinforcement learning, tiny: they learn, resume exactly, share work between ranks, refuse nonsense."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.oracles.tiny_rl import REWARDS, rl_arguments
from tests.oracles.tiny_training import (
    finish,
    kill,
    logged,
    losses,
    start_training,
    wait_for,
)
from unimodal.training import cli

LOSS_FILE = "tests.oracles.tiny_training.LossFile"
PPO: dict[str, str | float] = {"model__value": "{}", "model__kl": "{text: 0.1, image: 0.1}"}
STANDSTILL = "tests.oracles.tiny_training.Standstill"


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train.py:")]
    return line


def test_a_reward_is_learnt_and_everything_is_logged(tmp_path: Path) -> None:
    rollouts = "{prompts: 4, group: 16, rows: 2, length: 64}"
    cli.main(rl_arguments(tmp_path, tmp_path / "run", trainer__max_steps=40, model__rollouts=rollouts))
    rewards = list(map(float, logged(tmp_path / "run", "train/reward").values()))
    assert sum(rewards[-8:]) / 8 > sum(rewards[:8]) / 8 + 0.1
    for name in ("kl_text", "value_loss"):
        with pytest.raises(KeyError):
            logged(tmp_path / "run", f"train/{name}")
    names = ("loss", "grad_norm", "log_prob_gap", "entropy_text", "entropy_image", "zero_std_groups", "clipped_high")
    for name in names:
        assert logged(tmp_path / "run", f"train/{name}")
    assert max(map(float, logged(tmp_path / "run", "train/log_prob_gap").values())) < 1e-5
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    "options",
    [
        {
            "model__value": "{}",
            "model__kl": "{text: 0.1, image: 0.1}",
            "model__rollouts__epochs": 2,
            "checkpoint__every_n_train_steps": 4,
        },
        {"model__loss": "SequenceRatio", "model__advantage": "PerReward", "model__aggregation": "sequence-mean"},
        {"model__loss": "ClippedWeights", "model__advantage": "LeaveOneOut", "model__entropy": 0.01},
        {"model__loss": "SoftGate", "model__advantage": "MeanRemoved", "model__aggregation": "constant"},
        {"model__rollouts__dynamic_rounds": 2, "model__rollouts__overlong": "{cache: 4}"},
    ],
    ids=["PPO", "GSPO and GDPO", "CISPO and RLOO", "SAPO and Dr.GRPO", "DAPO"],
)
def test_every_algorithm_trains(options: dict[str, str | float], tmp_path: Path) -> None:
    cli.main(rl_arguments(tmp_path, tmp_path / "run", **options))
    norms = list(map(float, logged(tmp_path / "run", "train/grad_norm").values()))
    assert norms
    assert all(0 < norm < 1e4 for norm in norms)


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize(("ranks", "options"), [(1, PPO), (2, {})], ids=["one rank PPO", "two ranks GRPO"])
def test_a_killed_run_resumes_to_the_same_losses_and_rewards(
    ranks: int, options: dict[str, str | float], tmp_path: Path
) -> None:
    more = {"trainer__devices": ranks, "trainer__max_steps": 8, **options}
    if ranks == 2:
        more["trainer__strategy"] = "ddp"
    files = {name: tmp_path / f"{name}.txt" for name in ("whole", "killed")}
    callbacks = {name: f"{{class_path: {LOSS_FILE}, init_args: {{path: {file}}}}}" for name, file in files.items()}
    arguments = {
        name: rl_arguments(tmp_path, tmp_path / name, **more, trainer__callbacks=f"[{callback}]")
        for name, callback in callbacks.items()
    }
    output = finish(process := start_training(arguments["whole"]))
    assert process.returncode == 0, output
    flag = tmp_path / "flag"
    stop = f"{{class_path: {STANDSTILL}, init_args: {{step: 6, flag: {flag}}}}}"
    both = f"[{callbacks['killed']}, {stop}]"
    process = start_training(rl_arguments(tmp_path, tmp_path / "killed", **more, trainer__callbacks=both))
    wait_for(process, flag)
    kill(process)
    output = finish(process := start_training([*arguments["killed"], "--ckpt_path=last"]))
    assert process.returncode == 0, output
    whole, killed = dict(losses(files["whole"])), losses(files["killed"])
    assert [whole[step] for step, _ in killed] == [loss for _, loss in killed]
    assert {step for step, _ in killed} == set(whole)
    first, second = (load_file(tmp_path / name / "model" / "model.safetensors") for name in files)
    assert all(first[name].equal(second[name]) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        pytest.param("ddp", PPO, marks=pytest.mark.ranks, id="ddp PPO"),
        pytest.param("sharded", {"model__advantage": "PerReward"}, marks=pytest.mark.ranks, id="sharded GDPO"),
    ],
)
def test_two_ranks_learn_what_one_does(strategy: str, options: dict[str, str | float], tmp_path: Path) -> None:
    """The same answers, rewards and, to rounding, losses and weights, in float64."""
    options = {**options, "trainer__precision": "64-true"}
    two = {"trainer__devices": 2, "trainer__strategy": strategy}
    runs = {"one": options, "two": {**options, **two}}
    for name, chosen in runs.items():
        output = finish(process := start_training(rl_arguments(tmp_path, tmp_path / name, **chosen)), 120)
        assert process.returncode == 0, output
    for name in ("train/reward", "train/loss", "train/grad_norm", "train/entropy_text"):
        alone, together = (logged(tmp_path / folder, name) for folder in runs)
        assert alone.keys() == together.keys()
        for step in alone:
            assert float(together[step]) == pytest.approx(float(alone[step]), rel=1e-10, abs=1e-12), (name, step)


def test_nonsense_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        "its advantage would be its reward": {"model__rollouts__group": 1},
        "ask for the reward 'red'; the run has length, pictures": {
            "model__rewards": "{length: {class_path: LengthForm}, pictures: {class_path: PictureCount}}"
        },
        "set checkpoint.every_n_train_steps to a multiple of 6": {
            "model__rollouts": "{prompts: 4, group: 4, rows: 2, length: 64, mini_batches: 2, epochs: 3}"
        },
        "rewards could not be had, more than 10%; the last: reward red of": {
            "model__rewards": REWARDS.replace("Redness", "Broken")
        },
        "widen the clip": {"model__loss": "ClippedRatio", "model__loss__low": 1e-9, "model__loss__high": 1e-9},
        "a row of 16: set rollouts.length to": {"model__rollouts__length": 16},
        "which prompts do not have": {
            "model__rewards": REWARDS.replace("LengthForm, init_args: {min_words: 3, max_words: 5}", "CaptionMatch")
        },
    }
    for reason, options in cases.items():
        text = refusal(rl_arguments(tmp_path, tmp_path / "run", **options), capsys)
        assert reason in text or reason.replace("prompts", "fileprompts") in text, text


def test_held_out_prompts_are_answered_at_validation_and_their_rewards_are_prepared_before(tmp_path: Path) -> None:
    """Validation runs without gradients, so what a reward trains or opens has to be there by then."""
    held_out = (
        f"[{{class_path: FilePrompts, init_args: {{path: {tmp_path / 'prompts.jsonl'}, rewards: {{late: 1.0}}, "
        "decode: {mode: text, max_new_tokens: 6}}}]"
    )
    rewards = REWARDS[:-1] + ", late: {class_path: tests.oracles.tiny_rl.Late}}"
    options = {"data__held_out": held_out, "model__rewards": rewards, "trainer__limit_val_batches": 1}
    cli.main(rl_arguments(tmp_path, tmp_path / "run", trainer__val_check_interval=1, **options))
    values = list(map(float, logged(tmp_path / "run", "val/reward").values()))
    assert len(values) == 3
    assert all(0 < value <= 1 for value in values)
    assert set(map(float, logged(tmp_path / "run", "train/rewards_lost").values())) == {0.0}


@pytest.mark.slow
@pytest.mark.ranks
def test_a_refusal_after_the_first_rollout_ends_both_ranks(tmp_path: Path) -> None:
    """Of rewards that fail on one rank alone, and of a clip that is found to be too narrow."""
    for options in (
        {"model__rewards": REWARDS.replace("Redness", "BrokenOnRankOne")},
        {"model__loss": "ClippedRatio", "model__loss__low": 1e-9, "model__loss__high": 1e-9},
    ):
        arguments = rl_arguments(tmp_path, tmp_path / "run", trainer__devices=2, trainer__strategy="ddp", **options)
        output = finish(process := start_training(arguments), 120)
        assert process.returncode == 2, output
        assert "train.py: " in output and "Traceback" not in output


@pytest.mark.slow
def test_sigterm_ends_a_run_with_a_checkpoint_of_its_last_rollout(tmp_path: Path) -> None:
    arguments = rl_arguments(tmp_path, tmp_path / "run", trainer__max_steps=2000)
    process = start_training(arguments)
    deadline = time.monotonic() + 300
    while not list((tmp_path / "run").glob("logs/version_*/metrics.csv")) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    output = finish(process, 120)
    assert process.returncode == 128 + signal.SIGTERM, output
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2 * saved["policy"]["round"] > 0
