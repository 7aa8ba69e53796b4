"""Layers compiled once for all of them, for decoding where whole steps are recorded.

A graph of the whole model takes a minute and more to make for each number of rows; a recorded step does not mind how
many graphs it is made of.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from unimodal.model.context import LayerContext
from unimodal.model.inference.compiling import tag_cache
from unimodal.model.model import UnifiedModel

GRAPHS = 64
"""Numbers of rows and lengths of a cache that one process may decode with, each a graph of a layer."""


class CompiledLayer(nn.Module):
    """A block through a function that all blocks share."""

    def __init__(self, block: nn.Module, function: Callable[[nn.Module, Tensor, LayerContext], Tensor]) -> None:
        super().__init__()
        self.block, self.function = block, function

    def forward(self, x: Tensor, context: LayerContext) -> Tensor:
        """See the block."""
        return self.function(self.block, x, context)


def layer_by_layer(model: UnifiedModel, **options: Any) -> UnifiedModel:
    """A copy for inference that shares all weights; `options` go to torch.compile."""
    tag_cache()
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
    shared = {id(parameter): parameter for parameter in model.parameters()}
    copied = copy.deepcopy(model, shared).eval()  # pyright: ignore[reportArgumentType]
    fresh = FunctionType(_layer.__code__.replace(), globals(), "layer")  # graphs are counted by code object
    function: Any = torch.compile(fresh, dynamic=False, fullgraph=True, **options)
    copied.trunk.blocks = nn.ModuleList(CompiledLayer(block, function) for block in copied.trunk.blocks)
    return copied


def _layer(block: nn.Module, x: Tensor, context: LayerContext) -> Tensor:
    return block(x, context)
