"""The stages of a curriculum before they are trained: which file holds one, and whether each can be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from unimodal.model.config import ModelConfig
from unimodal.model.model import UnifiedModel
from unimodal.training.curriculum import Curriculum, read_curriculum
from unimodal.training.module import TransformerModule
from unimodal.training.optimizers.build import build_optimizer
from unimodal.training.start import bundle_config, check_patterns


def curriculum_of(arguments: Sequence[str]) -> tuple[Curriculum | None, list[str]]:
    """The curriculum that a command line of `fit` names as its config, and what else it says; None for a single run."""
    given = list(arguments)
    if not given or given[0] != "fit":
        return None, given
    for index, argument in enumerate(given):
        name, separator, value = argument.partition("=")
        if name not in ("--config", "-c"):
            continue
        value, end = (
            (value, index + 1) if separator else (given[index + 1] if index + 1 < len(given) else "", index + 2)
        )
        curriculum = read_curriculum(Path(value))
        if curriculum is not None:
            return curriculum, given[1:index] + given[end:]
    return None, given


def check_stage(cli: Any, before: ModelConfig | None) -> tuple[ModelConfig | None, int]:
    """A stage as `fit` would build it and the architecture of the stage before -> its own, and its tokens a step.

    Nothing is loaded: the model has no memory. Raises ValueError for patterns that match nothing or leave nothing to
    train, and for parts that do not fit the data.
    """
    module, data, trainer = cli.model, cli.datamodule, cli.trainer
    stream = getattr(data, "stream", None)
    each = trainer.world_size * trainer.accumulate_grad_batches
    a_step = stream.rows * stream.length * each if stream else 1
    if type(module) is not TransformerModule:
        return before, a_step  # prompts of rewards are known once there is a bundle
    data.setup("fit")
    source = before or bundle_config(module.start)
    config = module.architecture(data.spec, source)
    with torch.device("meta"):
        model = UnifiedModel(config)
    check_patterns(model, module.start)
    build_optimizer(model, module.optimizer_config)
    return config, a_step
