"""Trains an image autoencoder with Lightning, and measures its latents at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenizers_vq.autoencoder import AutoencoderOutput, ImageAutoencoder, ImageAutoencoderConfig
from tokenizers_vq.backbones import BackboneConfig, PatchBackboneConfig
from tokenizers_vq.discriminator import AdversarialLossConfig
from tokenizers_vq.losses import PerceptualLossConfig, ReconstructionLossConfig
from tokenizers_vq.reconstruction_module import ReconstructionModule, TokenizerOptimizerConfig

# Shapes: B images, S image side, C latent width, G grid side.


class AutoencoderModule(ReconstructionModule[ImageAutoencoder]):
    """Reconstruction, KL, and optional perceptual and adversarial terms; each is logged by name.

    kl_weight: of the mean over all elements in nats. The larger it is, the more noise the posterior has, until channels
    hold little else: configs/tokenizer/easy_vqa_kl.yaml tells what was measured.
    out: the folder that is written at the end of a fit, with statistics over every picture of the data module's split
    as it is, without augmentation.
    """

    def __init__(
        self,
        image_size: int = 64,
        backbone: BackboneConfig | None = None,
        latent_dim: int = 16,
        latent_patch: int = 1,
        kl_weight: float = 1e-3,
        reconstruction: ReconstructionLossConfig | None = None,
        perceptual: PerceptualLossConfig | None = None,
        adversarial: AdversarialLossConfig | None = None,
        optimizer: TokenizerOptimizerConfig | None = None,
        out: Path | None = None,
    ) -> None:
        if kl_weight < 0:
            raise ValueError(f"the weight of the KL term is at least 0, got {kl_weight}")
        config = ImageAutoencoderConfig(
            image_size=image_size,
            backbone=backbone or PatchBackboneConfig(),
            latent_dim=latent_dim,
            latent_patch=latent_patch,
        )
        super().__init__(ImageAutoencoder(config), reconstruction, perceptual, adversarial, optimizer)
        self.kl_weight, self.out = kl_weight, out

    def reconstruct(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """images (B, 3, S, S) -> reconstructions (B, 3, S, S) of posterior samples, and the weighted KL term.

        The samples' noise follows from step and rank alone, so that a resumed run draws what an unbroken one does.
        """
        step = self._steps() * self.trainer.world_size + self.trainer.global_rank
        result: AutoencoderOutput = self.tokenizer(images, torch.Generator().manual_seed(step))
        return result.reconstruction, {"kl": self.kl_weight * result.kl}

    def validation_step(self, batch: Tensor, batch_index: int) -> Tensor:
        """Log PSNR and SSIM of the posterior's mean, KL in nats of an element, and the posterior's standard deviation
        over that of the latents; returns the reconstructions (B, 3, S, S)."""
        del batch_index
        posterior = self.tokenizer.posterior(batch)
        images = self.tokenizer.pixels(posterior.mean).clamp(-1, 1)
        self.log_quality(images, batch)
        spread = posterior.mean.std(dim=(0, 2, 3)).clamp_min(1e-6)
        noise = (posterior.std.mean(dim=(0, 2, 3)) / spread).mean()
        self.log_dict({"val/kl": posterior.kl.mean(), "val/noise": noise}, batch_size=len(batch), sync_dist=True)
        return images

    test_step = validation_step

    def predict_step(self, batch: Tensor, batch_index: int) -> Tensor:
        """images (B, 3, S, S) -> latents (B, C, G, G)."""
        del batch_index
        return self.tokenizer.encode(batch)

    def on_fit_start(self) -> None:
        """Raises ValueError where there will be nothing to measure the latents over."""
        if self.out is not None and self._data() is None:
            raise ValueError(
                "an autoencoder is measured over the pictures of a data module: fit with one, or without out"
            )

    def on_fit_end(self) -> None:
        """Measure the latents, and leave the autoencoder where `out` says."""
        if self.out is not None and self.trainer.is_global_zero:
            self.tokenizer.eval().measure(self._data().predict_dataloader())
            self.tokenizer.save(Path(self.out))

    def _data(self) -> Any:
        return getattr(self.trainer, "datamodule", None)
