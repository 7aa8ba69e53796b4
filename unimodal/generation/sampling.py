"""Sampling: logits and a uniform number become a token. Plain functions of tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Shapes: B rows, V vocabulary.


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Temperature 0 takes the likeliest token; top_k 0 and top_p 1 leave all tokens in."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"the temperature is finite and at least 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p lies above 0 and up to 1, got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k is at least 0 (0 keeps all tokens), got {self.top_k}")


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598) on logits: u + scale * (c - u); scale 1 gives back c exactly."""
    return conditional if scale == 1 else unconditional + scale * (conditional - unconditional)


def sample(logits: Tensor, uniform: Tensor, config: SamplingConfig) -> Tensor:
    """logits (B, V) float32 with -inf where forbidden, uniform (B,) in [0, 1) -> tokens (B,).

    Top-k, then top-p over what is left; the token is where the running sum of probabilities passes the uniform
    number, so a row's token depends on its own logits and number alone.
    """
    if config.temperature == 0:
        return logits.argmax(-1)
    values, order = (logits / config.temperature).sort(dim=-1, descending=True, stable=True)
    if config.top_k:
        values[:, config.top_k :] = float("-inf")
    probabilities = values.softmax(-1)
    if config.top_p < 1:
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= config.top_p, 0)
    running = probabilities.double().cumsum(-1)
    threshold = uniform.double()[:, None] * running[:, -1:]
    place = (running <= threshold).sum(-1, keepdim=True).clamp_max(logits.shape[-1] - 1)
    return order.gather(-1, place).squeeze(-1)


def row_uniforms(seeds: list[int], steps: int) -> Tensor:
    """One stream of uniform numbers for each row: (B, steps)."""
    return torch.stack([torch.rand(steps, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
