"""Rows in another order, with a gradient that is gathered."""

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
