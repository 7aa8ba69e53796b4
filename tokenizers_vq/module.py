"""Trains an image tokenizer with Lightning."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from tokenizers_vq.backbones import BackboneConfig, PatchBackboneConfig
from tokenizers_vq.discriminator import AdversarialLossConfig
from tokenizers_vq.image_tokenizer import ImageTokenizer, ImageTokenizerConfig, Reconstruction
from tokenizers_vq.losses import PerceptualLossConfig, ReconstructionLossConfig
from tokenizers_vq.metrics import code_counts, codebook_use, over_ranks, perplexity
from tokenizers_vq.quantizers import QuantizerConfig, VQConfig
from tokenizers_vq.reconstruction_module import ReconstructionModule, TokenizerOptimizerConfig

# Shapes: B images, S image side.

log = logging.getLogger(__name__)

COLLAPSED_BELOW = 0.05
"""An alarm sounds when less than this share of the codebook occurs in a validation run."""


class ImageTokenizerModule(ReconstructionModule[ImageTokenizer]):
    """Reconstruction, quantizer, and optional perceptual and adversarial terms; each is logged by name."""

    def __init__(
        self,
        image_size: int = 64,
        backbone: BackboneConfig | None = None,
        quantizer: QuantizerConfig | None = None,
        reconstruction: ReconstructionLossConfig | None = None,
        perceptual: PerceptualLossConfig | None = None,
        adversarial: AdversarialLossConfig | None = None,
        optimizer: TokenizerOptimizerConfig | None = None,
        out: Path | None = None,
    ) -> None:
        config = ImageTokenizerConfig(
            image_size=image_size, backbone=backbone or PatchBackboneConfig(), quantizer=quantizer or VQConfig()
        )
        super().__init__(ImageTokenizer(config), reconstruction, perceptual, adversarial, optimizer)
        self.out = out
        self._counts: list[Tensor] = []

    def reconstruct(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """images (B, 3, S, S) -> reconstructions (B, 3, S, S), and the quantizer's named losses."""
        result: Reconstruction = self.tokenizer(images)
        return result.images, result.losses

    def configure_model(self) -> None:
        """One codebook, where there are several ranks."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self.tokenizer.quantizer.join_ranks()

    def on_validation_epoch_start(self) -> None:
        """Start counting codes."""
        self._counts = []

    def validation_step(self, batch: Tensor, batch_index: int) -> Tensor:
        """Log PSNR and SSIM; returns the reconstructions (B, 3, S, S)."""
        del batch_index
        result: Reconstruction = self.tokenizer(batch)
        images = result.images.clamp(-1, 1)
        self.log_quality(images, batch)
        self._counts.append(code_counts(result.indices, self.tokenizer.codebook_size))
        return images

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log how much of the codebook is in use, over all ranks, and sound the alarm when it collapses."""
        counts = over_ranks(torch.stack(self._counts).sum(0))
        use = codebook_use(counts)
        self.log("val/codebook_use", use, prog_bar=True)
        self.log("val/perplexity", perplexity(counts))
        if use < COLLAPSED_BELOW and not self.trainer.sanity_checking:
            log.warning(
                "the codebook has collapsed: %.1f%% of %d codes occur; lower the learning rate, raise revive_below, "
                "or use fsq",
                100 * float(use),
                self.tokenizer.codebook_size,
            )

    on_test_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_validation_epoch_end

    def predict_step(self, batch: Tensor, batch_index: int) -> Tensor:
        """images (B, 3, S, S) -> codes (B, N)."""
        del batch_index
        return self.tokenizer.encode(batch)

    def on_fit_end(self) -> None:
        """Leave the tokenizer where `out` says."""
        if self.out is not None and self.trainer.is_global_zero:
            self.tokenizer.eval().save(Path(self.out))
