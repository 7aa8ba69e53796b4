"""Matrices read straight through, once for a row or two: what a compiled decoding step is made of on a CPU.

A product with one row is as fast as memory is read, and the kernels for matrices reach half of that: they rearrange in
blocks what is used only once. Written as multiply and sum, a compiler makes one plain loop of it, which takes the
neighbouring norms and activations along (docs/log.md, 2026-11-24).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from unimodal.model.model import UnifiedModel

# Shapes: R rows, I inputs, O outputs.


class MatvecLinear(nn.Module):
    """A linear layer as multiply and sum, in float32 at least, on the same weight; slow unless it is compiled."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        outputs, inputs = self.weight.shape
        exact = torch.promote_types(x.dtype, torch.float32)
        out = (x.reshape(-1, 1, inputs).to(exact) * self.weight.to(exact)).sum(-1)
        if self.bias is not None:
            out = out + self.bias.to(exact)
        return out.to(x.dtype).view(*x.shape[:-1], outputs)


def matvec(model: UnifiedModel) -> UnifiedModel:
    """A copy for inference whose linear layers are `MatvecLinear`; it shares all weights with the given model."""
    shared = {id(parameter): parameter for parameter in model.parameters()}
    copied = copy.deepcopy(model, shared).eval()  # pyright: ignore[reportArgumentType]
    linears = [(name, module) for name, module in copied.named_modules() if isinstance(module, nn.Linear)]
    for name, module in linears:
        parent, _, leaf = name.rpartition(".")
        setattr(copied.get_submodule(parent), leaf, MatvecLinear(module))
    return copied
