"""An exponential moving average of the weights that are trained, kept where their optimizer keeps its states.

So it is sharded as the weights are, and every kind of checkpoint holds it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from unimodal.model.model import UnifiedModel
from unimodal.model.sharded import local_parts, reshard

AVERAGE = "average"
"""Of the state of a parameter, beside its moments."""
AVERAGED = "averaged"
"""Of a checkpoint: the names of the first optimizer's parameters, in the order of its groups; "" without an average."""


def average_decay(decay: float, updates: int) -> float:
    """The decay after so many updates: small at first, so that the average leaves the starting weights behind.

    min(decay, (1 + n) / (10 + n)), as in TensorFlow's ExponentialMovingAverage with `num_updates`.
    """
    return min(decay, (1 + updates) / (10 + updates))


def trained_parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All parameters of an optimizer that take a gradient, in the order of its groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"] if parameter.requires_grad]


@torch.no_grad()
def begin_average(optimizer: torch.optim.Optimizer) -> None:
    """Averages start as the weights are, where there is none yet."""
    for parameter in trained_parameters(optimizer):
        state = optimizer.state[parameter]
        if AVERAGE not in state:
            state[AVERAGE] = parameter.detach().clone()


@torch.no_grad()
def update_average(optimizer: torch.optim.Optimizer, decay: float) -> None:
    """One step: average <- decay * average + (1 - decay) * weight. A step that was skipped has no gradients."""
    parameters = trained_parameters(optimizer)
    if all(parameter.grad is None for parameter in parameters):
        return
    averages = [optimizer.state[parameter][AVERAGE] for parameter in parameters]
    weights = local_parts(each.detach() for each in parameters)
    torch._foreach_lerp_(local_parts(averages), weights, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]


@torch.no_grad()
def _exchange(optimizers: Sequence[Any]) -> None:
    """Weights and averages change places, bit for bit."""
    for optimizer in optimizers:
        for parameter in trained_parameters(optimizer):
            weight, average = local_parts([parameter.detach(), optimizer.state[parameter][AVERAGE]])
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)


def keeps_average(optimizer: Any) -> bool:
    """Whether the optimizer's states hold an average of the weights."""
    states = getattr(optimizer, "state", {}).values()
    return any(AVERAGE in state for state in states)


@contextmanager
def averaged_weights(model: UnifiedModel, optimizers: Sequence[Any]) -> Iterator[None]:
    """The averages in place of the weights, where they are kept; the weights come back to the bit."""
    kept = [optimizer for optimizer in optimizers if keeps_average(optimizer)]
    try:
        reshard(model)
        _exchange(kept)
        yield
    finally:
        reshard(model)
        _exchange(kept)
