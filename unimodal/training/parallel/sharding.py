"""Sharding a model: which parts are gathered together, in which type, and how their weights begin.

Every block, the embedding, the head, each branch and what is left of the model are one unit of FSDP2 each: a unit is
gathered when its `forward` is called, freed after it, and its gradients are reduced in float32 (SimpleFSDP,
arXiv 2411.00284, and torchtitan shard the same units).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.overrides import TorchFunctionMode

from unimodal.model.model import TOKENS, UnifiedModel
from unimodal.model.sharded import write_rows

Checkpointing = Literal["none", "block", "selective"]
CHECKPOINTING: tuple[Checkpointing, ...] = ("none", "block", "selective")
"""Of activations: all are kept; each block is computed again in the backward pass; all but its products are."""

AXES = ("replicate", "shard")
"""Of the mesh of ranks."""


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How a model lies on many ranks, and what of its activations is kept.

    `replicate` groups of ranks each hold the whole model and share it within the group: ranks of a node that has fast
    links, say. 1 shares it over all ranks. `activation_checkpointing`: `block` keeps the input of each block,
    `selective` its matrix products and attention too. Only `trainer.strategy: sharded` shards. `check_memory` refuses a
    model whose weights, gradients and optimizer states alone are more than a device holds. With
    `async_checkpoints` training continues while a checkpoint is written, from a copy in host memory.
    """

    replicate: int = 1
    activation_checkpointing: Checkpointing = "none"
    check_memory: bool = True
    async_checkpoints: bool = False

    def __post_init__(self) -> None:
        if self.replicate < 1:
            raise ValueError(f"parallel.replicate is at least 1, got {self.replicate}")
        if self.activation_checkpointing not in CHECKPOINTING:
            kinds = ", ".join(CHECKPOINTING)
            raise ValueError(
                f"parallel.activation_checkpointing is one of {kinds}, got {self.activation_checkpointing}"
            )


def rank_mesh(config: ParallelConfig, device: torch.device) -> DeviceMesh:
    """All ranks by groups that hold the model whole. Raises ValueError where they do not divide so."""
    ranks = dist.get_world_size()
    if ranks % config.replicate:
        raise ValueError(f"parallel.replicate: {ranks} ranks do not make {config.replicate} equal groups")
    shape = (config.replicate, ranks // config.replicate)
    return init_device_mesh(device.type, shape, mesh_dim_names=AXES)


def shard(model: UnifiedModel, mesh: DeviceMesh, device: torch.device, dtype: torch.dtype | None) -> None:
    """Shard a model that was built on the meta device; its weights hold anything until `first_weights`.

    dtype: of matrices as they are gathered; None is their own. The embedding is gathered in its own type, as the
    residual stream starts there.
    """
    over = mesh if mesh.size(0) > 1 else mesh["shard"]
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    exact = MixedPrecisionPolicy(cast_forward_inputs=False)
    if model.trunk.embedding.weight.dtype == torch.float64:
        policy = exact
    units: list[tuple[nn.Module, MixedPrecisionPolicy]] = [(block, policy) for block in model.trunk.blocks]
    units += [(branch, policy) for branch in model.branches.values()]
    if model.config.trunk.tied_head:
        units += [(head, policy) for name, head in model.heads.items() if name != TOKENS]
        model.to_empty(device=device)  # a tied weight would fall apart afterwards; such models are small
        model.init_weights()
    else:
        units += [(model.trunk.embedding, exact), *((head, policy) for head in model.heads.values())]
    for unit, how in units:
        fully_shard(unit, mesh=over, mp_policy=how)
    fully_shard(model, mesh=over, mp_policy=exact, reshard_after_forward=False)
    if not model.config.trunk.tied_head:
        model.to_empty(device=device)


def first_weights(model: UnifiedModel) -> None:
    """Give a sharded model the weights that one rank would give it; a tied model has them already."""
    if not model.config.trunk.tied_head:
        with WholeRandomNumbers():
            model.init_weights()


class WholeRandomNumbers(TorchFunctionMode):
    """Random numbers of a sharded tensor are those of the whole, of which each rank keeps its rows.

    So the first weights do not depend on the number of ranks. One whole tensor exists at a time.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        if func is not nn.init.normal_:
            return func(*args, **(kwargs or {}))
        bound = signature(nn.init.normal_).bind(*args, **(kwargs or {}))
        tensor = bound.arguments["tensor"]
        if not isinstance(tensor, DTensor):
            return func(*args, **(kwargs or {}))
        bound.arguments["tensor"] = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
        write_rows(tensor, func(*bound.args, **bound.kwargs))
        return tensor
