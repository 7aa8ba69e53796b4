"""Every warning is given by a training that deserves it, once, also after it was resumed; a sound one gets none."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from tests.oracles.tiny import tiny_shards
from tests.oracles.tiny_training import Options, fit_arguments
from unimodal.training.cli import run
from unimodal.training.monitors.alarms import History, Limits, warnings

WATCHED: Options = {
    "monitors__every": 1,
    "monitors__gradients_every": 1,
    "monitors__rows": 4,
    "monitors__limits__after": 2,
}
BOLD: Options = {
    **WATCHED,
    "trainer__max_steps": 30,
    "model__optimizer": "AdamWConfig",
    "model__optimizer__learning_rate": 3.0,
    "model__schedule__warmup_steps": 15,
    "model__schedule__decay": "constant",
    "model__objectives": "[{class_path: NextToken, init_args: {z_weight: 0.0}}]",
}
"""A rate a thousand times too high, reached in fifteen steps."""
LINES = {
    "output_growth": "the norm of the last layer's output grew from",
    "attention_logit": "the largest score of attention is",
    "qk_gain": "a gain of QK-norm is",
    "log_z": "the mean log Z of the next token is",
    "update": "a step moves weights by",
    "loss_rise": "the loss rose from",
    "grad_norm_rise": "the gradient norm rose from",
    "grad_norm_apart": "one modality leads the other",
    "code_entropy": "the expected image codes have",
    "dead_codes": "of the image codes of the data are hardly ever expected",
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_shards(tmp_path_factory.mktemp("data") / "shards")


def warned(
    shards: Path, root: Path, capsys: pytest.CaptureFixture[str], *more: str, **options: str | float
) -> list[str]:
    """The limits that a run warned of, each as often as it did."""
    capsys.readouterr()
    run([*fit_arguments(shards, root, **options), *more])
    said = capsys.readouterr().out
    return [name for name, line in LINES.items() for _ in range(said.count(line))]


def test_every_limit_has_its_warning() -> None:
    assert {item.name for item in fields(Limits)} == {"after", *LINES}


@pytest.mark.slow
def test_a_rate_far_too_high_is_warned_of_from_all_sides_and_once(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = warned(shards, tmp_path / "normed", capsys, **BOLD)
    assert len(found) == len(set(found))
    assert {"output_growth", "qk_gain", "update", "loss_rise", "log_z"} <= set(found)
    trunk = '{"dim": 16, "num_layers": 2, "hidden_dim": 24, "max_length": 64, "qk_norm": null}'
    bare = warned(shards, tmp_path / "bare", capsys, f"--model.init_args.trunk={trunk}", **BOLD)
    assert "attention_logit" in bare


@pytest.mark.slow
def test_a_rate_that_is_raised_too_far_in_the_middle_is_warned_of(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound: Options = {**WATCHED, "trainer__max_steps": 40, "checkpoint__every_n_train_steps": 10}
    sound |= {"model__optimizer": "AdamWConfig", "model__optimizer__learning_rate": 0.01}
    assert warned(shards, tmp_path, capsys, **sound) == []
    raised: Options = {**sound, "trainer__max_steps": 60, "model__optimizer__learning_rate": 3.0}
    assert {"loss_rise", "grad_norm_rise"} <= set(warned(shards, tmp_path, capsys, "--ckpt_path", "last", **raised))


@pytest.mark.slow
def test_a_sound_training_is_not_warned_of(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert warned(shards, tmp_path, capsys, **{**WATCHED, "trainer__max_steps": 40}) == []


@pytest.mark.slow
def test_a_modality_that_is_learnt_by_heart_leaves_the_other_behind(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Text is memorised; image codes have no loss to speak of in training, and a gradient all the same."""
    options: Options = {
        **WATCHED,
        "trainer__max_steps": 150,
        "monitors__limits__after": 100,
        "model__optimizer": "AdamWConfig",
        "model__optimizer__learning_rate": 0.02,
        "model__optimizer__weight_decay": 0.0,
        "data__templates__drawn_image_weight": 1e-6,
        "data__templates__shown_image_weight": 1e-6,
    }
    assert "grad_norm_apart" in warned(shards, tmp_path, capsys, **options)


@pytest.mark.slow
def test_a_model_that_knows_one_picture_alone_is_warned_of(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was trained on one until it knew it by heart, and is shown others."""
    one = tiny_shards(tmp_path / "one", 1)
    draws: Options = {
        "data__templates__image_first": 0.0,
        "data__validation_share": 0.0,
        "model__optimizer": "AdamWConfig",
    }
    first: Options = {**draws, "trainer__max_steps": 100, "model__optimizer__learning_rate": 0.02}
    run(fit_arguments(one, tmp_path / "first", **first))
    second: Options = {**WATCHED, **draws, "trainer__max_steps": 6, "model__optimizer__learning_rate": 0.0}
    found = warned(
        shards, tmp_path / "second", capsys, **second, model__start__bundle=str(tmp_path / "first" / "model")
    )
    assert {"code_entropy", "dead_codes"} <= set(found)


@pytest.mark.slow
def test_a_resumed_run_compares_with_what_it_measured_before(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second half of a run that was interrupted says what the second half of the unbroken one says."""
    whole = warned(shards, tmp_path / "whole", capsys, **BOLD)
    options: Options = {**BOLD, "checkpoint__every_n_train_steps": 10, "trainer__max_steps": 10}
    first = warned(shards, tmp_path / "parts", capsys, **options)
    last = ["--ckpt_path", "last"]
    second = warned(shards, tmp_path / "parts", capsys, *last, **{**options, "trainer__max_steps": 30})
    assert first and second and sorted(first + second) == sorted(whole)


def test_a_limit_of_0_is_not_watched() -> None:
    figures = {"output_norm": 1e9, "attention_logit": 1e9, "qk_gain": 1e9, "log_z": -1e9, "update_tables": 1e9}
    figures |= {"loss": 1e9, "grad_norm": 1e9, "grad_norm_text": 1.0, "grad_norm_image": 1e9, "dead_codes": 1.0}
    figures |= {"code_entropy": 0.0, "code_entropy_data": 5.0}
    unwatched = Limits(**dict.fromkeys(LINES, 0.0))  # pyright: ignore[reportArgumentType]
    history = History(outputs=[(10, 1.0)], loss=1.0, grad_norm=1.0)
    assert {name for name, _ in warnings(figures, history, Limits(), 20)} == set(LINES)
    assert list(warnings(figures, history, unwatched, 20)) == []
    assert "output_growth" not in dict(warnings(figures, history, Limits(), 19))


def test_the_output_is_compared_with_what_it_was_at_half_of_the_steps() -> None:
    history = History()
    for step in range(1, 100_001):
        history.follow({"output_norm": float(step)}, step)
        before = history.output_before(step)
        assert step < 40 or (before is not None and 0.45 * step <= before[0] <= step / 2 and before[1] == before[0]), (
            step
        )
    assert len(history.outputs) < 20
