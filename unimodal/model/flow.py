"""The flow branch: what turns latents of an image into tokens of the sequence, and the trunk's answer into a velocity.

BAGEL (arXiv 2505.14683) in one picture; t = 1 is noise:

    x_t = (1 - t) x_0 + t noise        token = in(x_t) + time(t) + place        velocity = out(trunk(tokens))

The velocity is noise - x_0. Time enters here alone: no layer of the trunk is modulated by it. What goes beyond BAGEL is
`axial_turn`: with one rotary position for a whole image, which latents are neighbours can be told by the content of
tokens alone, and small models take long to learn it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimodal.model.config import FlowConfig
from unimodal.model.sinusoids import axial_turns, sincos_places, sinusoids

# Shapes: M latent tokens of a batch, C channels of a latent, D model width, S side of the table of places.


class LatentTokens(NamedTuple):
    """The latents of a batch, and where they stand in its rows."""

    index: Tensor
    """(M,) int64 into the flattened (B * T) tokens."""
    latents: Tensor
    """(M, C) as they enter: noised, or clean."""
    times: Tensor
    """(M,) in [0, 1]; 0 is clean."""
    places: Tensor
    """(M,) int64: row * S + column of the latent in its image."""
    parted: Tensor
    """(B * T,) int64: all other tokens, then the latents."""
    order: Tensor
    """(B * T,) int64: where each token lies among those; the inverse of `parted`."""


def latent_tokens(standing: Tensor, latents: Tensor, times: Tensor, places: Tensor) -> LatentTokens:
    """standing (B, T) bool, latents (M, C), times and places (M,), in the order of the tokens -> LatentTokens."""
    flat = standing.flatten()
    index, others = flat.nonzero().squeeze(1), (~flat).nonzero().squeeze(1)
    parted = torch.cat([others, index])
    return LatentTokens(index, latents, times, places, parted, parted.argsort())


class FlowBranch(nn.Module):
    """Latents into the trunk, velocities out of it."""

    places: Tensor

    def __init__(self, config: FlowConfig, dim: int, head_dim: int) -> None:
        super().__init__()
        self.config = config
        self.latent_in = nn.Linear(config.latent_dim, dim)
        self.time_in = nn.Linear(config.time_channels, dim)
        self.time_out = nn.Linear(dim, dim)
        self.velocity_out = nn.Linear(dim, config.latent_dim)
        self.register_buffer("places", sincos_places(config.side, dim, config.place_period), persistent=False)
        self.head_dim = head_dim

    def reset_parameters(self) -> None:
        """The first velocity is zero, so that the first loss is E|noise - x_0|^2."""
        nn.init.normal_(self.latent_in.weight, std=self.config.latent_dim**-0.5 * EMBEDDED_STD)
        for layer in (self.latent_in, self.time_in, self.time_out):
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.velocity_out.weight)
        nn.init.zeros_(self.velocity_out.bias)

    def embed(self, media: LatentTokens) -> Tensor:
        """-> (M, D), what stands in the sequence for each latent."""
        waves = sinusoids(media.times, self.config.time_channels).to(media.latents.dtype)
        time = self.time_out(F.silu(self.time_in(waves)))
        return self.latent_in(media.latents) + time + self.places[media.places].to(media.latents.dtype)

    def turns(self, media: LatentTokens, shape: torch.Size) -> Tensor | None:
        """-> (B, T, W/2) what each token of this shape (B, T) is turned by beside its position; None for nothing."""
        if not self.config.axial_turn:
            return None
        rows, columns = media.places // self.config.side, media.places % self.config.side
        angles = axial_turns(rows, columns, self.head_dim, self.config.axial_turn)
        still = angles.new_zeros(shape.numel(), angles.shape[-1])
        return still.index_copy(0, media.index, angles).unflatten(0, shape)

    def velocity(self, features: Tensor) -> Tensor:
        """(M, D) after the last norm -> noise - x_0 (M, C)."""
        return self.velocity_out(features)


EMBEDDED_STD = 0.5
"""Size of an embedded latent of unit variance at the start, of the order of its place (sines and cosines)."""


def shifted(times: Tensor, shift: float) -> Tensor:
    """Times moved towards noise: shift * t / (1 + (shift - 1) * t) (SD3, arXiv 2403.03206, section 5.3.2)."""
    return shift * times / (1 + (shift - 1) * times)


def logit_normal_times(count: int, shift: float, generator: torch.Generator | None = None) -> Tensor:
    """(count,) sigmoid of a standard normal, then shifted."""
    return shifted(torch.randn(count, generator=generator).sigmoid(), shift)


def noised(latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """latents, noise (M, C), times (M,) -> (1 - t) x_0 + t noise."""
    return torch.lerp(latents, noise, times[:, None].to(latents.dtype))


def places_of(cells: Tensor, side: int) -> Tensor:
    """cells (M, 2), row and column in an image -> (M,) places in a table of this side.

    The table's side is the stride, so a model must keep the side it was trained with. Raises ValueError for a cell that
    the table does not have.
    """
    if len(cells) and int(cells.max()) >= side:
        raise ValueError(f"a picture of more than {side} latents along a side does not fit this model's places")
    return cells[:, 0] * side + cells[:, 1]


def image_places(rows: int, columns: int, side: int) -> Tensor:
    """(rows * columns,) places of a whole image's latents, row by row."""
    return places_of(torch.cartesian_prod(torch.arange(rows), torch.arange(columns)), side)
