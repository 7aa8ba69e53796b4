"""Trains an image tokenizer with Lightning."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from tokenizers_vq.backbones import BackboneConfig, PatchBackboneConfig
from tokenizers_vq.discriminator import (
    AdversarialLossConfig,
    PatchDiscriminator,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
)
from tokenizers_vq.image_tokenizer import ImageTokenizer, ImageTokenizerConfig, Reconstruction
from tokenizers_vq.losses import PerceptualLoss, PerceptualLossConfig, ReconstructionLossConfig, reconstruction_loss
from tokenizers_vq.metrics import code_counts, codebook_use, perplexity, psnr, ssim
from tokenizers_vq.quantizers import QuantizerConfig, VQConfig

# Shapes: B images, S image side.

log = logging.getLogger(__name__)

COLLAPSED_BELOW = 0.05
"""An alarm sounds when less than this share of the codebook occurs in a validation run."""


@dataclass(frozen=True, kw_only=True)
class TokenizerOptimizerConfig:
    """AdamW, a short warm-up, then linear decay to a fiftieth over `max_steps` of the trainer."""

    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    warmup_steps: int = 50


class ImageTokenizerModule(L.LightningModule):
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
        super().__init__()
        self.automatic_optimization = False
        config = ImageTokenizerConfig(
            image_size=image_size, backbone=backbone or PatchBackboneConfig(), quantizer=quantizer or VQConfig()
        )
        self.tokenizer = ImageTokenizer(config)
        self.reconstruction = reconstruction or ReconstructionLossConfig()
        self.perceptual_weight = perceptual.weight if perceptual else 0.0
        self.perceptual = PerceptualLoss() if perceptual else None
        self.adversarial = adversarial
        self.discriminator = PatchDiscriminator(adversarial.width) if adversarial else None
        self.optimizer_config = optimizer or TokenizerOptimizerConfig()
        self.out = out
        self._counts: list[Tensor] = []

    def configure_optimizers(self) -> Any:
        """One optimizer for the tokenizer, one for the discriminator where there is one."""
        config = self.optimizer_config
        optimizer = torch.optim.AdamW(
            self.tokenizer.parameters(),
            lr=config.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=config.weight_decay,
            fused=True,
        )
        total = max(self.trainer.max_steps, 1)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1, (step + 1) / config.warmup_steps) * max(0.02, 1 - step / total)
        )
        optimizers: list[torch.optim.Optimizer] = [optimizer]
        if self.discriminator is not None and self.adversarial is not None:
            rate = self.adversarial.learning_rate
            optimizers.append(torch.optim.AdamW(self.discriminator.parameters(), lr=rate, betas=(0.5, 0.9)))
        return optimizers, [scheduler]

    def training_step(self, batch: Tensor, batch_index: int) -> None:
        """One step of the tokenizer, then one of the discriminator once it has joined."""
        del batch_index
        optimizers = _as_list(self.optimizers())
        result = self.tokenizer(batch)
        terms = self._terms(batch, result)
        optimizers[0].zero_grad()
        self.manual_backward(torch.stack(list(terms.values())).sum())
        optimizers[0].step()
        scheduler: Any = self.lr_schedulers()
        scheduler.step()
        if self._adversarial_now():
            self._discriminator_step(batch, result.images.detach())
        self.log("train/psnr", psnr(result.images.detach(), batch).mean(), prog_bar=True)
        self.log_dict({f"train/{name}": value.detach() for name, value in terms.items()})
        self.log("train/loss", sum(value.detach() for value in terms.values()), prog_bar=True)

    def _terms(self, images: Tensor, result: Reconstruction) -> dict[str, Tensor]:
        terms = {"reconstruction": reconstruction_loss(result.images, images, self.reconstruction), **result.losses}
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual_weight * self.perceptual(result.images, images)
        if self._adversarial_now() and self.discriminator is not None and self.adversarial is not None:
            adversarial = generator_loss(self.discriminator(result.images))
            weight = adaptive_weight(terms["reconstruction"], adversarial, self._last_layer())
            terms["adversarial"] = self.adversarial.weight * weight * adversarial
        return terms

    def _adversarial_now(self) -> bool:
        return (
            self.adversarial is not None and self.trainer.current_epoch >= 0 and self._steps() >= self.adversarial.start
        )

    def _steps(self) -> int:
        scheduler: Any = self.lr_schedulers()
        return scheduler.last_epoch

    def _last_layer(self) -> Tensor:
        convolutions = [m for m in self.tokenizer.decoder.modules() if isinstance(m, nn.Conv2d)]
        return convolutions[-1].weight

    def _discriminator_step(self, real: Tensor, fake: Tensor) -> None:
        assert self.discriminator is not None
        # Lightning counts the steps of its own wrappers towards max_steps; the discriminator's are not to shorten a run
        optimizer = _as_list(self.optimizers(use_pl_optimizer=False))[1]
        loss = discriminator_loss(self.discriminator(real), self.discriminator(fake))
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.log("train/discriminator", loss.detach())

    def on_validation_epoch_start(self) -> None:
        """Start counting codes."""
        self._counts = []

    def validation_step(self, batch: Tensor, batch_index: int) -> Tensor:
        """Log PSNR and SSIM; returns the reconstructions (B, 3, S, S)."""
        del batch_index
        result: Reconstruction = self.tokenizer(batch)
        images = result.images.clamp(-1, 1)
        self.log("val/psnr", psnr(images, batch).mean(), prog_bar=True, batch_size=len(batch), sync_dist=True)
        self.log("val/ssim", ssim(images, batch), batch_size=len(batch), sync_dist=True)
        self._counts.append(torch.bincount(result.indices.flatten(), minlength=self.tokenizer.codebook_size))
        return images

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log how much of the codebook is in use, over all ranks, and sound the alarm when it collapses."""
        indices = torch.repeat_interleave(
            torch.arange(self.tokenizer.codebook_size), torch.stack(self._counts).sum(0).cpu()
        )
        counts = code_counts(indices, self.tokenizer.codebook_size)
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


def _as_list(optimizers: Any) -> list[Any]:
    return optimizers if isinstance(optimizers, list) else [optimizers]
