"""Rows in another order or with gaps between them, with gradients that nothing is added up for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Permuted(torch.autograd.Function):
    """x[order], whose gradient is gathered by the inverse.

    Plain indexing scatters its gradient and adds, which for bfloat16 on CPUs is slow and does not share the work among
    threads; a permutation has nothing to add.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x[order]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return grads[0][inverse], None, None


class RowsSpread(torch.autograd.Function):
    """x[rows] (S, D): row n of x (N, D) stands at `slots[n]` (N, K), and its gradient is gathered from there.

    The other rows are fillers, whose gradients are dropped.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        return x[rows]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (slots,) = ctx.saved_tensors
        return grads[0][slots].sum(1), None, None


class RowsPicked(torch.autograd.Function):
    """x[slots] for distinct slots; the gradient of the other rows is 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        ctx.length = len(x)
        return x[slots]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (slots,) = ctx.saved_tensors
        found = grads[0].new_zeros(ctx.length, *grads[0].shape[1:])
        found[slots] = grads[0]
        return found, None
