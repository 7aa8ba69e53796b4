"""Noise of sampling, a pure function of the seed of an answer, the number of the token and the id.

A token is the id with the largest probability divided by an exponential number of its own: the Gumbel-max trick
(Maddison et al., arXiv 1411.0030), one logarithm cheaper. Two distributions that are nearly alike pick the same id with
the same noise most of the time, which is what makes a guess of later tokens come true (generation/drafts/).
"""

from __future__ import annotations

import torch
from torch import Tensor

# Shapes: B tokens to be drawn, V vocabulary.

LOW = 0xFFFFFFFF
"""32 bits. Products of them with the multipliers, which have 31, stay within int64 on every device."""
FIRST, SECOND = 0x21F0AAAD, 0x735A2D97
"""Multipliers of a mixer of 32 bits with little bias (Wellons, "Prospecting for hash functions", 2018)."""
LARGEST_SHARE = 1 - 2.0**-24
"""Below 1 in float32, so that all noise is finite and the only id that is allowed is the one that is drawn."""
GOLDEN = 0x1E3779B1
"""Spreads ids over 32 bits."""


def exponentials(seeds: Tensor, numbers: Tensor, vocab_size: int) -> Tensor:
    """Seeds and numbers of tokens, int64 (B,) -> float32 (B, V), each from the standard exponential distribution.

    The integers behind them are the same on every device.
    """
    one = mixed(mixed(seeds & LOW, numbers) ^ 1, seeds >> 32)
    other = mixed(mixed(numbers & LOW, seeds) ^ 2, seeds >> 32)
    ids = (torch.arange(vocab_size, device=seeds.device) * GOLDEN) & LOW
    shares = mixed(ids ^ one[:, None], other[:, None]).float().add_(0.5).mul_(2.0**-32)
    return shares.clamp_max_(LARGEST_SHARE).neg_().log1p_().neg_()


def mixed(values: Tensor, key: Tensor) -> Tensor:
    """Values of 32 bits -> others of 32 bits, in an order that depends on a key (any int64)."""
    values = values ^ (values >> 16)
    values = (values * FIRST + (key & LOW)) & LOW
    values = values ^ (values >> 15)
    values = (values * SECOND) & LOW
    return values ^ (values >> 15)
