"""Rotary positions (arXiv 2104.09864) in the half-split layout that Llama checkpoints use."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Shapes: B batch, T tokens, H heads, D head width.


class RotaryEmbedding(nn.Module):
    """Turns positions into the cosines and sines that rotate queries and keys."""

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        self.head_dim, self.theta = head_dim, theta

    def forward(self, positions: Tensor, dtype: torch.dtype, turns: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """positions (B, T) -> cos, sin (B, T, 1, D/2), computed in at least float32 and returned in `dtype`.

        turns (B, T, D/2) are angles that come on top.
        """
        precise = torch.promote_types(dtype, torch.float32)
        exponents = torch.arange(0, self.head_dim, 2, device=positions.device, dtype=precise) / self.head_dim
        angles = positions[..., None].to(precise) * self.theta**-exponents
        angles = angles if turns is None else angles + turns
        return angles.cos().to(dtype).unsqueeze(2), angles.sin().to(dtype).unsqueeze(2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x (B, T, H, D): channel i pairs with channel i + D/2."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
