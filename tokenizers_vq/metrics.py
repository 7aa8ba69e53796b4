"""How good a reconstruction is, and how much of the codebook is in use."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

# Shapes: B images, S image side, K codebook size; images lie in [-1, 1].


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each image: (B, 3, S, S) twice -> (B,)."""
    error = (images - targets).square().mean(dim=(1, 2, 3)).clamp_min(1e-10)
    return 10 * torch.log10(4 / error)


def ssim(images: Tensor, targets: Tensor) -> Tensor:
    """Structural similarity, mean over the batch: (B, 3, S, S) twice -> scalar."""
    value = structural_similarity_index_measure(images, targets, data_range=2.0)
    return value if isinstance(value, Tensor) else value[0]


def code_counts(indices: Tensor, codebook_size: int) -> Tensor:
    """How often each code occurs on this rank: any shape -> (K,)."""
    return torch.bincount(indices.flatten(), minlength=codebook_size)


def over_ranks(counts: Tensor) -> Tensor:
    """The sum over all ranks, on the device of the counts: NCCL knows no other."""
    counts = counts.clone()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(counts)
    return counts


def codebook_use(counts: Tensor) -> Tensor:
    """Share of codes that occur at all: (K,) -> scalar."""
    return (counts > 0).float().mean()


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of the code distribution: (K,) -> scalar between 1 and K."""
    shares = counts.float() / counts.sum().clamp_min(1)
    return torch.exp(torch.special.entr(shares).sum())
