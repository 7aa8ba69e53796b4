"""Sines and cosines that encode a time or a position."""

from __future__ import annotations

import torch
from torch import Tensor

# Shapes: M times, S side of a table of positions.

MAX_PERIOD = 10_000.0


def sinusoids(times: Tensor, channels: int) -> Tensor:
    """times (M,) -> (M, channels): cosines, then sines, of periods up to MAX_PERIOD (DiT, arXiv 2212.09748).

    Times lie in [0, 1] and enter unscaled, as BAGEL's do.
    """
    half = channels // 2
    exponents = torch.arange(half, device=times.device, dtype=torch.promote_types(times.dtype, torch.float32)) / half
    angles = times[:, None] * MAX_PERIOD**-exponents
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def sincos_positions(grid_size: int, dim: int, period: float = MAX_PERIOD) -> Tensor:
    """(grid_size^2, dim): 2-D sines and cosines, the first half for the column (MAE, arXiv 2111.06377).

    Always on the CPU: a table that is made, not loaded, must survive where a model is built without storage.
    """
    quarter = dim // 4
    frequencies = period ** -(torch.arange(quarter, dtype=torch.float64, device="cpu") / quarter)
    angles = torch.arange(grid_size, dtype=torch.float64, device="cpu")[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=-1)
    of_columns = waves.repeat(grid_size, 1)
    of_rows = waves.repeat_interleave(grid_size, dim=0)
    return torch.cat([of_columns, of_rows], dim=-1).float()


MIN_FREQUENCY_RATIO = 0.1
"""Lowest over highest frequency."""


def axial_angles(rows: Tensor, columns: Tensor, head_dim: int, highest: float) -> Tensor:
    """rows, columns (M,) int64 -> (M, head_dim / 2) float32: the angles of pairs of channels.

    A latent's column turns the even pairs, its row the odd.

    Rotary positions in two dimensions (EVA-02, arXiv 2303.11331; FiT, arXiv 2402.12376), from `highest` radians between
    neighbours down to a tenth of it.
    """
    pairs = head_dim // 4
    exponents = torch.arange(pairs, dtype=torch.float32, device=rows.device) / pairs
    frequencies = highest * MIN_FREQUENCY_RATIO**exponents
    return torch.stack([columns[:, None] * frequencies, rows[:, None] * frequencies], dim=-1).flatten(1)
