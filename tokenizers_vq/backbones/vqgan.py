"""VQGAN's convolutional backbone (arXiv 2012.09841): residual stages, halved between them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_vq.backbones.config import BackboneConfig

# Shapes: B images, S image side, G grid side, C code width.

NORM_GROUPS = 16


@dataclass(frozen=True, kw_only=True)
class VQGANBackboneConfig(BackboneConfig):
    """`width * multipliers[i]` channels at stage i; the image is halved between stages."""

    width: int = 32
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks_per_stage: int = 1

    def __post_init__(self) -> None:
        if self.width % NORM_GROUPS:
            raise ValueError(f"the width must be a multiple of {NORM_GROUPS}, got {self.width}")

    @property
    def reduction(self) -> int:
        """Pixels along one side of a code."""
        return 2 ** (len(self.multipliers) - 1)


class ConvBlock(nn.Module):
    """Two 3x3 convolutions with group norm and SiLU, and a way around them."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(NORM_GROUPS, channels_in),
            nn.SiLU(),
            nn.Conv2d(channels_in, channels_out, 3, padding=1),
            nn.GroupNorm(NORM_GROUPS, channels_out),
            nn.SiLU(),
            nn.Conv2d(channels_out, channels_out, 3, padding=1),
        )
        self.around = nn.Identity() if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, H, W) -> (B, channels_out, H, W)."""
        return self.around(x) + self.body(x)


class Upsample(nn.Module):
    """Twice the side, nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.smooth = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W)."""
        return self.smooth(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _stage(channels_in: int, channels_out: int, num_blocks: int) -> list[nn.Module]:
    widths = [channels_in] + [channels_out] * num_blocks
    return [ConvBlock(a, b) for a, b in itertools.pairwise(widths)]


def _to(channels_in: int, channels_out: int) -> list[nn.Module]:
    return [
        nn.GroupNorm(NORM_GROUPS, channels_in),
        nn.SiLU(),
        nn.Conv2d(channels_in, channels_out, 3, padding=1),
    ]


class VQGANEncoder(nn.Module):
    """Images (B, 3, S, S) -> (B, C, G, G)."""

    def __init__(self, config: VQGANBackboneConfig, code_dim: int) -> None:
        super().__init__()
        widths = [config.width * m for m in config.multipliers]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, padding=1)]
        for index, width in enumerate(widths):
            if index:
                layers.append(nn.Conv2d(widths[index - 1], widths[index - 1], 3, stride=2, padding=1))
            layers += _stage(widths[max(index - 1, 0)], width, config.blocks_per_stage)
        self.layers = nn.Sequential(*layers, *_to(widths[-1], code_dim))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class VQGANDecoder(nn.Module):
    """(B, C, G, G) -> images (B, 3, S, S)."""

    def __init__(self, config: VQGANBackboneConfig, code_dim: int) -> None:
        super().__init__()
        widths = [config.width * m for m in reversed(config.multipliers)]
        layers: list[nn.Module] = [nn.Conv2d(code_dim, widths[0], 3, padding=1)]
        for index, width in enumerate(widths):
            if index:
                layers.append(Upsample(widths[index - 1]))
            layers += _stage(widths[max(index - 1, 0)], width, config.blocks_per_stage)
        self.layers = nn.Sequential(*layers, *_to(widths[-1], 3))

    def forward(self, codes: Tensor) -> Tensor:
        return self.layers(codes)
