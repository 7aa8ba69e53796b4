"""Trainings with monitors: every kind of model, any number of ranks, and the same losses as without."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.oracles.tiny import tiny_shards
from tests.oracles.tiny_training import (
    FLOW,
    VISION,
    Options,
    finish,
    fit_arguments,
    logged,
    losses,
    start_training,
)
from unimodal.training.callbacks.monitors import Monitors
from unimodal.training.cli import main, run


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_shards(tmp_path_factory.mktemp("data") / "shards", latents=True, patch=4)


EXPERTS: Options = {"model__trunk__moe": "{experts: 4, top_k: 2, hidden_dim: 12}"}
KINDS: dict[str, Options] = {
    "discrete": {"model__trunk__dropout": 0.1},
    "flow": FLOW,
    "ViT": VISION,
    "experts": EXPERTS,
    "multi-token": {"model__multi_token": "{depth: 1}"},
}


@pytest.mark.slow
@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_every_kind_of_model_is_monitored_and_trains_as_without(options: Options, shards: Path, tmp_path: Path) -> None:
    found = []
    for every in (0, 2):
        root = tmp_path / str(every)
        root.mkdir()
        extra = [
            "--trainer.callbacks+=tests.oracles.tiny_training.LossFile",
            f"--trainer.callbacks.path={root / 'losses'}",
        ]
        settings: Options = {
            "monitors__every": every,
            "monitors__gradients_every": 4,
            "monitors__rows": 4,
            "data__templates__image_first": 0.2,
        }
        run([*fit_arguments(shards, root, **{**options, **settings, "trainer__max_steps": 6}), *extra])
        found.append(losses(root / "losses"))
    assert found[0] == found[1] and len(found[0]) == 6
    names = ["output_norm", "attention_logit", "attention_logit_layer_01", "qk_gain", "log_z", "update_matrices"]
    names += ["accuracy_text", "entropy_text"]
    names += [] if options is FLOW else ["accuracy_image", "code_entropy", "dead_codes"]
    for name in names:
        values = logged(tmp_path / "2", f"monitor/{name}")
        assert len(values) == 3 and all(math.isfinite(float(value)) for value in values.values()), name
    assert len(logged(tmp_path / "2", f"monitor/grad_norm_{'flow' if options is FLOW else 'image'}")) == 1
    assert "monitor/" not in (tmp_path / "0" / "logs" / "version_0" / "metrics.csv").read_text()


def test_settings_that_monitor_nothing_are_one_line(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option, words in (
        ("--monitors.rows=0", "1 row at least"),
        ("--monitors.every=-1", "every 0 steps at least"),
        ("--monitors.limits.update=-1", "monitors.limits.update is finite and not negative"),
    ):
        with pytest.raises(SystemExit) as end:
            main([*fit_arguments(shards, tmp_path), option])
        said = capsys.readouterr().err.strip().splitlines()
        assert end.value.code == 2 and words in said[-1]
    assert Monitors(every=0).every == 0


ON_RANKS = [
    pytest.param("sharded", KINDS["discrete"], id="sharded discrete", marks=pytest.mark.slow),
    pytest.param("ddp", KINDS["discrete"], id="ddp discrete", marks=pytest.mark.ranks),
    *(
        pytest.param(strategy, KINDS[kind], id=f"{strategy} {kind}", marks=pytest.mark.ranks)
        for strategy in ("ddp", "sharded")
        for kind in ("experts", "flow")
    ),
]


@pytest.mark.parametrize(("strategy", "options"), ON_RANKS)
def test_two_ranks_are_monitored_together(strategy: str, options: Options, shards: Path, tmp_path: Path) -> None:
    """Both reduce the same figures, also where one has no row of a norm; weights are shards again after each pass."""
    found = []
    for every in (0, 2):
        root = tmp_path / str(every)
        root.mkdir()
        given: Options = {**options, "monitors__every": every, "monitors__gradients_every": 2, "monitors__rows": 4}
        given |= {"trainer__max_steps": 4, "trainer__devices": 2, "trainer__strategy": strategy}
        extra = ["--trainer.callbacks+=tests.oracles.tiny_training.LossFile"]
        extra += [f"--trainer.callbacks.path={root / 'losses'}"]
        process = start_training([*fit_arguments(shards, root, **given), *extra])
        output = finish(process, 240)
        assert process.returncode == 0, output
        found.append(losses(root / "losses"))
    assert found[0] == found[1] and len(found[0]) == 4
    for name in ("output_norm", "attention_logit", "qk_gain", "log_z", "update_matrices", "update_vectors"):
        values = logged(tmp_path / "2", f"monitor/{name}")
        assert len(values) == 2 and all(math.isfinite(float(value)) for value in values.values()), name
