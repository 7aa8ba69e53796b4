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


class FewRowsLinear(nn.Module):
    """A linear layer that reads its weight once for up to MAX_ROWS rows, with a sum for each, and else multiplies.

    For compiled steps on GPUs: the kernels for matrices read a 7B model's at 1.8 to 2.5 of 3 TB/s (docs/log.md,
    2026-11-26).
    """

    MAX_ROWS = 4

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) > self.MAX_ROWS:
            return nn.functional.linear(x, self.weight, self.bias)
        exact = torch.promote_types(x.dtype, torch.float32)
        weight = self.weight.to(exact)
        out = torch.stack([(weight * row.to(exact)).sum(-1) for row in rows.unbind()])
        if self.bias is not None:
            out = out + self.bias.to(exact)
        return out.to(x.dtype).view(*x.shape[:-1], -1)


def with_few_rows(block: nn.Module) -> None:
    """Replace a block's linear layers by `FewRowsLinear` on the same weights."""
    for name, module in [(name, module) for name, module in block.named_modules() if isinstance(module, nn.Linear)]:
        block.set_submodule(name, FewRowsLinear(module))


def matvec(model: UnifiedModel) -> UnifiedModel:
    """A copy for inference whose linear layers are `MatvecLinear`; it shares all weights with the given model."""
    shared = {id(parameter): parameter for parameter in model.parameters()}
    copied = copy.deepcopy(model, shared).eval()  # pyright: ignore[reportArgumentType]
    linears = [(name, module) for name, module in copied.named_modules() if isinstance(module, nn.Linear)]
    for name, module in linears:
        parent, _, leaf = name.rpartition(".")
        setattr(copied.get_submodule(parent), leaf, MatvecLinear(module))
    return copied
