"""The flow branch: what turns latents of an image into tokens of the sequence.

BAGEL (arXiv 2505.14683) in one picture; t = 1 is noise:

    x_t = (1 - t) x_0 + t noise      token = in(x_t) + time(t) + position      velocity = head(trunk(tokens))

The velocity is noise - x_0. Time enters here alone: no layer of the trunk is modulated by it. Beyond BAGEL there is
`axial_rope_max`: where a whole image has one rotary position, only the content of tokens says which latents are
neighbours, and small models take long to learn it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimodal.model.branches.base import Branch, Inserted, MediaTokens, no_tokens, positions_of
from unimodal.model.config import INIT_STD, FlowConfig
from unimodal.model.linear import BoundaryLinear
from unimodal.model.sinusoids import axial_angles, sincos_positions, sinusoids

# Shapes: M latent tokens of a batch, C numbers of a latent, D model width, S side of the table of positions.

EMBEDDED_STD = 0.5
"""Size of an embedded latent of unit variance at the start, of the order of its position embedding."""


class FlowBranch(Branch):
    """Latents, noised or clean, into the trunk."""

    expert = "generation"
    positions: Tensor

    def __init__(self, config: FlowConfig, dim: int, head_dim: int) -> None:
        super().__init__()
        self.config, self.head_dim = config, head_dim
        self.latent_in = BoundaryLinear(config.latent_dim, dim)
        self.time_in = BoundaryLinear(config.time_channels, dim)
        self.time_out = BoundaryLinear(dim, dim)
        self.register_buffer("positions", self._table(), persistent=False)

    def init_weights(self) -> None:
        """Embedded latents start with a size near that of their positions, whose table is computed again."""
        nn.init.normal_(self.latent_in.weight, std=self.config.latent_dim**-0.5 * EMBEDDED_STD)
        nn.init.normal_(self.time_in.weight, std=INIT_STD)
        nn.init.normal_(self.time_out.weight, std=INIT_STD)
        for layer in (self.latent_in, self.time_in, self.time_out):
            nn.init.zeros_(layer.bias)
        self.positions.copy_(self._table())  # `to_empty` gives it other memory

    def forward(self, media: MediaTokens) -> Inserted:
        """Raises ValueError for an image larger than the table of positions."""
        values = media.values.to(self.latent_in.weight.dtype)
        times = media.values.new_zeros(len(values)) if media.times is None else media.times
        waves = sinusoids(times, self.config.time_channels).to(values.dtype)
        time = self.time_out(F.silu(self.time_in(waves)))
        position = self.positions[positions_of(media, self.config.grid_size)].to(values.dtype)
        return Inserted(media.index, self.latent_in(values) + time + position, self._angles(media.row_col))

    def _table(self) -> Tensor:
        """(S * S, D)."""
        return sincos_positions(self.config.grid_size, self.latent_in.out_features, self.config.pos_embed_period)

    def _angles(self, row_col: Tensor) -> Tensor | None:
        if not self.config.axial_rope_max:
            return None
        return axial_angles(row_col[:, 0], row_col[:, 1], self.head_dim, self.config.axial_rope_max)

    def empty(self, like: Tensor) -> MediaTokens:
        """See `Branch`."""
        return no_tokens(self.config.latent_dim, like)


def shift_times(times: Tensor, shift: float) -> Tensor:
    """Times moved towards noise: shift * t / (1 + (shift - 1) * t) (SD3, arXiv 2403.03206, section 5.3.2)."""
    return shift * times / (1 + (shift - 1) * times)


def logit_normal_times(count: int, shift: float, generator: torch.Generator | None = None) -> Tensor:
    """(count,) sigmoid of a standard normal, then shifted."""
    return shift_times(torch.randn(count, generator=generator).sigmoid(), shift)


def add_noise(latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """latents, noise (M, C), times (M,) -> (1 - t) x_0 + t noise."""
    return torch.lerp(latents, noise, times[:, None].to(latents.dtype))
