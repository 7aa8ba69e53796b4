"""Damage that decoded pictures show: blur, dropped detail in 8x8 blocks, noise. Keeps a judge fair to them."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

# Shapes: B images, S image side (a multiple of 8); images lie in [-1, 1].

BLOCK = 8
CLEAN_SHARE = 0.4
STRONG_BLUR_SHARE = 0.25
BLOCKY_SHARE = 0.5
NOISY_SHARE = 0.5
MAX_NOISE = 0.1


def degrade(images: Tensor, generator: torch.Generator) -> Tensor:
    """(B, 3, S, S) -> the same pictures, each with its own random mix of blur, block quantisation and noise."""

    def chance() -> Tensor:
        return torch.rand(len(images), 1, 1, 1, generator=generator)

    kind, strength = chance(), chance()
    light = _blur(images, dilation=1)
    blurred = torch.where(
        kind < 1 - STRONG_BLUR_SHARE,
        torch.lerp(images, light, strength),
        torch.lerp(light, _blur(light, dilation=2), strength),
    )
    images = torch.where(kind < CLEAN_SHARE, images, blurred)
    blocky = chance().flatten() < BLOCKY_SHARE
    images[blocky] = quantise_blocks(images[blocky], 0.01 + 0.06 * chance()[blocky])
    noise = torch.randn(images.shape, generator=generator) * (MAX_NOISE * chance())
    return images + torch.where(chance() < NOISY_SHARE, noise, 0.0)


def quantise_blocks(images: Tensor, step: Tensor) -> Tensor:
    """JPEG's lossy part without its colour space: 8x8 DCT, coefficients rounded, coarser with frequency.

    (B, 3, S, S) and (B, 1, 1, 1) -> (B, 3, S, S).
    """
    batch, channels, height, width = images.shape
    rows, columns = height // BLOCK, width // BLOCK
    basis = _dct_basis()
    both = torch.kron(basis, basis)
    blocks = images.reshape(batch, channels, rows, BLOCK, columns, BLOCK).transpose(3, 4).flatten(4)
    index = torch.arange(BLOCK)
    steps = step[..., None] * (1 + index[:, None] + index).flatten()
    quantised = (torch.round(blocks @ both.T / steps) * steps) @ both
    return quantised.unflatten(4, (BLOCK, BLOCK)).transpose(3, 4).reshape(images.shape)


def _dct_basis() -> Tensor:
    """Orthonormal DCT-II of length 8."""
    index = torch.arange(float(BLOCK))
    basis = torch.cos(math.pi / BLOCK * (index + 0.5) * index[:, None]) * math.sqrt(2 / BLOCK)
    basis[0] /= math.sqrt(2)
    return basis


def _blur(images: Tensor, *, dilation: int) -> Tensor:
    """A 3x3 binomial filter, its taps `dilation` pixels apart; one direction at a time, which is fast on a CPU."""
    padded = functional.pad(images, (dilation,) * 4, mode="replicate")
    for axis in (2, 3):
        size = images.shape[axis]
        left, middle, right = (padded.narrow(axis, shift * dilation, size) for shift in range(3))
        padded = (left + right) / 4 + middle / 2
    return padded
