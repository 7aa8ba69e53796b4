"""Rotary positions (arXiv 2104.09864) in the half-split layout that Llama checkpoints use."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from unimodal.model.config import RopeConfig, RopeScaling

# Shapes: B batch, T tokens, H heads, W head width.


class RotaryEmbedding(nn.Module):
    """Turns positions into the cosines and sines that rotate queries and keys."""

    def __init__(self, head_dim: int, config: RopeConfig) -> None:
        super().__init__()
        self.head_dim, self.config = head_dim, config

    def forward(self, positions: Tensor, dtype: torch.dtype, angles: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """positions (B, T) -> cos, sin (B, T, 1, W/2), computed in at least float32 and returned in `dtype`.

        angles (B, T, W/2) are added to the rotary angles.
        """
        precise = torch.promote_types(dtype, torch.float32)
        exponents = torch.arange(0, self.head_dim, 2, device=positions.device, dtype=precise) / self.head_dim
        frequencies = self.config.theta**-exponents
        if self.config.scaling is not None:
            frequencies = scaled_frequencies(frequencies, self.config.scaling)
        turned = positions[..., None].to(precise) * frequencies
        turned = turned if angles is None else turned + angles
        return turned.cos().to(dtype).unsqueeze(2), turned.sin().to(dtype).unsqueeze(2)


def scaled_frequencies(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Frequencies (W/2,) of Llama 3's long contexts; see RopeScaling."""
    rotations = scaling.original_max_length * frequencies / (2 * math.pi)  # over the original context
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept = ((rotations - scaling.low_freq_factor) / span).clamp(0, 1)
    return frequencies * kept + frequencies / scaling.factor * (1 - kept)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x (B, T, H, W): channel i pairs with channel i + W/2."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
