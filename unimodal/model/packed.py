"""Weights in the order in which a CPU's matrix kernels read them: the same function, decoded faster.

oneDNN reorders a weight matrix at every product unless that was done beforehand. For the few rows of a decoding step
the reordering costs more than the product itself (docs/log.md, 2026-11-24).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from unimodal.model.transformer import Transformer

ROWS_HINT = 16
"""The number of rows that the order is chosen for; it serves others too."""

LEAST_ROWS = 4
"""Fewer rows take longer than this many."""


class PackedLinear(nn.Module):
    """`nn.Linear` without bias whose weight has been reordered; for inference."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        if linear.bias is not None:
            raise ValueError("a linear layer with a bias cannot be packed")
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.order = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS_HINT)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        rows = x.reshape(-1, self.in_features)
        count = rows.shape[0]
        if count < LEAST_ROWS:
            rows = rows.repeat(LEAST_ROWS, 1)
        out = torch.ops.mkldnn._linear_pointwise(rows, self.order, None, "none", [], "")
        return out[:count].view(*x.shape[:-1], self.out_features)


def can_pack(weight: Tensor) -> bool:
    """Whether this machine has kernels for packed weights of this type."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


def packed(transformer: Transformer) -> Transformer:
    """A transformer for inference with packed weights; the given one itself where this machine cannot pack.

    Costs the memory of the matrices once more. Later changes of the given one's matrices do not reach it.
    """
    if not can_pack(transformer.embedding.weight):
        return transformer
    shared: dict[int, Any] = {id(parameter): parameter for parameter in transformer.parameters()}
    with torch.no_grad():
        copied = copy.deepcopy(transformer, shared).eval()
        for module in list(copied.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(module, name, PackedLinear(child))
    return copied
