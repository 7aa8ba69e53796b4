"""How the losses of tokens become one number: what each token weighs, and what the sum is divided by."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["token-mean", "sequence-mean", "sequence-sum", "constant"]
"""`token-mean`: over all tokens of the step (DAPO). `sequence-mean`: the mean over answers of their means (GRPO).
`sequence-sum`: the mean over answers of their sums. `constant`: those sums by a constant length (Dr. GRPO)."""


def token_weights(lengths: Tensor, aggregation: Aggregation, constant: int) -> tuple[Tensor, Tensor]:
    """lengths (B,) of answers -> the weight of each one's tokens (B,), and what the answer adds to the divisor (B,).

    The divisor of a step is the sum over all of its answers, mini-batches of one step and ranks together, so that a
    loss does not depend on how they are shared out.
    """
    ones = torch.ones_like(lengths, dtype=torch.float64)
    if aggregation == "token-mean":
        return ones, lengths.double()
    if aggregation == "sequence-mean":
        return 1 / lengths.clamp_min(1).double(), ones
    return ones, ones * (constant if aggregation == "constant" else 1)
