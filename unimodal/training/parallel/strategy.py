"""`trainer.strategy: sharded`: FSDP2 through Lightning's ModelParallelStrategy, with checkpoints of any rank number."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry

from unimodal.training.checkpointing import SoundCheckpoints
from unimodal.training.parallel.checkpoint import load_tensors, read_rest, training_tensors
from unimodal.training.parallel.sharding import ParallelConfig
from unimodal.training.parallel.writer import CheckpointWriter

NAME = "sharded"


class ShardedStrategy(ModelParallelStrategy):
    """Every rank trains on its own batches and holds its share of weights, gradients and optimizer states.

    The module shards itself when it is built (`parallel.sharding`). A checkpoint is a folder, there whole or not at
    all, and is opened by any number of ranks.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._sound, self._writer = SoundCheckpoints(), CheckpointWriter()
        self._interrupted = False

    def setup_environment(self) -> None:
        """All ranks share data; none shares tensors of a layer."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Yes: after the module's hooks have checked whose checkpoint it is."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Nothing: `save_checkpoint` takes tensors from the model."""
        return {}

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """What is no tensor of it."""
        groups = getattr(optimizer, "param_groups", [])
        return {"param_groups": [{k: v for k, v in group.items() if k != "params"} for group in groups]}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """On all ranks: each writes its share."""
        del storage_options
        path = Path(self.broadcast(str(filepath)))
        assert self.lightning_module is not None
        if not self._sound.is_worth_keeping(checkpoint, path):
            return
        parallel: ParallelConfig = self.lightning_module.parallel  # pyright: ignore[reportAssignmentType, reportAttributeAccessIssue]
        tensors = training_tensors(self.lightning_module, self.optimizers)
        self._writer.save(path, tensors, checkpoint, in_background=parallel.async_checkpoints)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """What is no tensor, and shapes of the weights: enough to see whose checkpoint it is."""
        del weights_only
        self._writer.wait()
        self._opened = Path(self.broadcast(str(checkpoint_path)))
        return read_rest(self._opened)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """The weights, into the shards that there are."""
        del checkpoint, strict
        assert self.lightning_module is not None
        load_tensors(self._opened, training_tensors(self.lightning_module, []))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """The optimizer's states, and its groups' settings."""
        assert self.lightning_module is not None
        load_tensors(self._opened, training_tensors(self.lightning_module, self.optimizers))
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            for group, values in zip(optimizer.param_groups, saved["param_groups"], strict=True):
                group.update(values)

    def remove_checkpoint(self, filepath: Any) -> None:
        """A folder, by the first rank."""
        if self.is_global_zero and self._sound.may_remove():
            self._writer.remove(Path(filepath))

    def on_exception(self, exception: BaseException) -> None:
        """An error of the run is not replaced by one of a checkpoint that is still being written."""
        del exception
        self._interrupted = True

    def teardown(self) -> None:
        """The run ends once its last checkpoint is written. Raises OSError where it could not be."""
        try:
            self._writer.wait()
        except OSError:
            if not self._interrupted:
                raise
        finally:
            super().teardown()


StrategyRegistry.register(NAME, ShardedStrategy, description="FSDP2 (unimodal)")
