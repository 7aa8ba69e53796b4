"""A sharded model made whole: on one rank, or on all of them to decode with."""

from __future__ import annotations

from torch import Tensor

from unimodal.model.checkpoint import assembled
from unimodal.model.model import UnifiedModel
from unimodal.model.sharded import shard_group, whole
from unimodal.training.lora import has_adapters, without_adapters


def whole_model(model: UnifiedModel, *, keep: bool) -> UnifiedModel | None:
    """The model itself where it is not sharded, else one of gathered weights on the CPU; None where it is not kept.
    One with adapters is merged.

    All ranks call it. Tensors are gathered one by one, and ranks that keep none free them at once.
    """
    if shard_group(list(model.parameters())) is None:
        return (without_adapters(model) if has_adapters(model) else model) if keep else None
    gathered: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        all_of_it = whole(tensor.detach())
        if keep:
            gathered[name] = all_of_it.cpu()
    return assembled(model.config, gathered) if keep else None
