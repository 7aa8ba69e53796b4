"""Patch backbone: one token a patch, residual convolutions between patches. Small, and fast on a CPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_vq.backbones.config import BackboneConfig

# Shapes: B images, S image side, P patch side, G = S / P grid side, D width, C code width.


@dataclass(frozen=True, kw_only=True)
class PatchBackboneConfig(BackboneConfig):
    """Patches of `patch_size` pixels, `depth` residual blocks of `width` channels on each side of the codes."""

    patch_size: int = 8
    width: int = 256
    depth: int = 3

    @property
    def reduction(self) -> int:
        """Pixels along one side of a code."""
        return self.patch_size


class ResidualBlock(nn.Module):
    """x + conv1x1(gelu(conv3x3(norm(x)))) on the grid of patches."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.mix = nn.Conv2d(width, width, 3, padding=1)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, G, G) -> (B, D, G, G)."""
        return x + self.out(F.gelu(self.mix(self.norm(x))))


class PatchEncoder(nn.Module):
    """Images (B, 3, S, S) -> (B, C, G, G)."""

    def __init__(self, config: PatchBackboneConfig, code_dim: int) -> None:
        super().__init__()
        size = config.patch_size
        self.embed = nn.Conv2d(3, config.width, size, stride=size)
        self.blocks = nn.Sequential(*(ResidualBlock(config.width) for _ in range(config.depth)))
        self.project = nn.Conv2d(config.width, code_dim, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.project(self.blocks(self.embed(images)))


class PatchDecoder(nn.Module):
    """(B, C, G, G) -> images (B, 3, S, S)."""

    def __init__(self, config: PatchBackboneConfig, code_dim: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(code_dim, config.width, 1)
        self.blocks = nn.Sequential(*(ResidualBlock(config.width) for _ in range(config.depth)))
        self.pixels = nn.Conv2d(config.width, 3 * config.patch_size**2, 1)
        self.shuffle = nn.PixelShuffle(config.patch_size)

    def forward(self, codes: Tensor) -> Tensor:
        return self.shuffle(self.pixels(self.blocks(self.project(codes))))
