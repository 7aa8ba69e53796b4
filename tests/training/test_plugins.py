"""A user's plugins stay beside the project's format of checkpoints."""

from __future__ import annotations

from pathlib import Path

from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from tests.oracles.tiny import tiny_shards
from tests.oracles.tiny_training import fit_arguments
from unimodal.training.checkpointing import AtomicCheckpointIO
from unimodal.training.cli import run


class Environment(LightningEnvironment):
    """Stands for a cluster's."""


def test_a_plugin_of_the_config_is_used_and_checkpoints_stay_atomic(tmp_path: Path) -> None:
    named = f"[{{class_path: {Environment.__module__}.Environment}}]"
    shards = tiny_shards(tmp_path / "shards")
    trainer = run(fit_arguments(shards, tmp_path / "run", trainer__max_steps=1, trainer__plugins=named)).trainer
    connector = trainer._accelerator_connector
    assert isinstance(connector.cluster_environment, Environment)
    assert isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO)
