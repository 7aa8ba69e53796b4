"""Scores of pictures against others: of reconstructions, gathered batch by batch, and of parts of one picture."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from tokenizers_vq.metrics import codebook_use, perplexity, psnr, ssim

# Shapes: B images, S image side, H height, W width, N codes of one image, K codebook size; images lie in [-1, 1].

MAX_PSNR = 106.02
"""What `psnr` says of equal pictures, in dB: 10 log10(4 / 1e-10)."""


@dataclass(kw_only=True)
class ReconstructionScores:
    """PSNR and SSIM as means over pictures; codebook use and perplexity over every code of the data."""

    codebook_size: int
    images: int = 0
    psnr_sum: float = 0.0
    ssim_sum: float = 0.0
    counts: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.counts = torch.zeros(self.codebook_size, dtype=torch.int64)

    def update(self, originals: Tensor, reconstructions: Tensor, codes: Tensor) -> None:
        """Add a batch: (B, 3, S, S) twice and (B, N) int64."""
        self.images += len(originals)
        self.psnr_sum += psnr(reconstructions, originals).sum().item()
        self.ssim_sum += ssim(reconstructions, originals).item() * len(originals)
        self.counts += torch.bincount(codes.flatten().cpu(), minlength=self.codebook_size)

    def metrics(self) -> dict[str, float]:
        """The contracted names and their values. Raises ValueError before any picture was added."""
        if not self.images:
            raise ValueError("no picture to reconstruct")
        return {
            "psnr": self.psnr_sum / self.images,
            "ssim": self.ssim_sum / self.images,
            "codebook_use": codebook_use(self.counts).item(),
            "perplexity": perplexity(self.counts).item(),
        }


def masked_psnr(image: Tensor, target: Tensor, mask: Tensor) -> float:
    """PSNR in dB over a mask's pixels: (3, H, W) twice and (H, W) bool. At most MAX_PSNR, also without pixels."""
    return psnr(image[None, :, mask, None], target[None, :, mask, None]).item() if mask.any() else MAX_PSNR
