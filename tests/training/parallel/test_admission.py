"""A model that no device of the run can hold is refused before it is built."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.oracles.tiny import tiny_model, tiny_shards
from tests.oracles.tiny_training import fit_arguments
from unimodal.training import cli
from unimodal.training.optimizers.build import AdamWConfig, MuonConfig, build_optimizer
from unimodal.training.parallel import admission
from unimodal.training.parallel.admission import check_memory, device_bytes, state_bytes
from unimodal.training.parallel.sharding import ParallelConfig
from unimodal.training.parallel.strategy import ShardedStrategy


@pytest.mark.parametrize("config", [AdamWConfig(), MuonConfig()])
def test_the_bytes_are_those_that_a_step_leaves(config: AdamWConfig | MuonConfig) -> None:
    model = tiny_model(dtype=torch.float32)
    optimizer = build_optimizer(model, config)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    states = [t for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t) and t.numel() > 1]
    tensors = [*model.parameters(), *(each.grad for each in model.parameters()), *states]
    assert state_bytes(model, config) == sum(each.numel() * each.element_size() for each in tensors if each is not None)


def test_what_is_frozen_has_weights_alone() -> None:
    model = tiny_model(dtype=torch.float32)
    weights = sum(4 * each.numel() for each in model.parameters())
    assert state_bytes(model, AdamWConfig(), ("*",)) == weights
    block = sum(4 * each.numel() for each in model.trunk.blocks[0].parameters())
    assert state_bytes(model, AdamWConfig(), ("trunk.blocks.0.*",)) == 4 * weights - 3 * block


def test_ranks_that_shard_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model, config = tiny_model(dtype=torch.float32), AdamWConfig()
    needed = state_bytes(model, config)
    monkeypatch.setattr(admission, "device_bytes", lambda device: needed * 3 // 4)
    sharded = object.__new__(ShardedStrategy)
    monkeypatch.setattr(ShardedStrategy, "root_device", torch.device("cuda"), raising=False)
    plain = SimpleNamespace(root_device=torch.device("cuda"))

    def check(strategy: object, **parallel: Any) -> None:
        trainer = SimpleNamespace(world_size=4, num_devices=4, strategy=strategy)
        check_memory(model, config, ParallelConfig(**parallel), (), trainer)

    check(sharded)
    check(sharded, replicate=2)
    for strategy, parallel in ((plain, {}), (sharded, {"replicate": 4})):
        with pytest.raises(ValueError, match=r"trainer\.strategy: sharded"):
            check(strategy, **parallel)
        check(strategy, check_memory=False, **parallel)


def test_this_machine_has_some_memory() -> None:
    assert 2**28 < device_bytes(torch.device("cpu")) < 2**50


@pytest.mark.slow
def test_fit_refuses_in_one_line_unless_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "device_bytes", lambda device: 1000)
    arguments = fit_arguments(tiny_shards(tmp_path / "shards"), tmp_path / "run", trainer__max_steps=1)
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and "unimodal plan" in error and "Traceback" not in error
    cli.main([*arguments, "--model.parallel.check_memory=false"])
