"""What training an image tokenizer and an autoencoder have in common: reconstruction terms, optimizers, steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import lightning as L
import torch
from torch import Tensor, nn

from tokenizers_vq.discriminator import (
    AdversarialLossConfig,
    PatchDiscriminator,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
)
from tokenizers_vq.identity import IDENTITY, check_identity, check_weights, plain
from tokenizers_vq.losses import PerceptualLoss, PerceptualLossConfig, ReconstructionLossConfig, reconstruction_loss
from tokenizers_vq.metrics import psnr, ssim
from tokenizers_vq.run_length import planned_steps

# Shapes: B images, S image side.

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class TokenizerOptimizerConfig:
    """AdamW, a short warm-up, then linear decay to a fiftieth over `max_steps` of the trainer."""

    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    warmup_steps: int = 50

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf or not 0 <= self.weight_decay < math.inf or self.warmup_steps < 1:
            raise ValueError(f"rates are finite numbers above 0, and there is a step of warm-up at least, got {self}")


class ReconstructionModule(L.LightningModule, Generic[Network]):
    """Reconstruction, the network's own terms, and optional perceptual and adversarial ones; each is logged by name.

    Subclasses give `reconstruct`. The network has a `decoder`, whose last convolution weighs the adversarial term.
    """

    def __init__(
        self,
        network: Network,
        reconstruction: ReconstructionLossConfig | None,
        perceptual: PerceptualLossConfig | None,
        adversarial: AdversarialLossConfig | None,
        optimizer: TokenizerOptimizerConfig | None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.tokenizer = network
        self.reconstruction = reconstruction or ReconstructionLossConfig()
        self.perceptual_weight = perceptual.weight if perceptual else 0.0
        self.perceptual = PerceptualLoss() if perceptual else None
        self.adversarial = adversarial
        self.discriminator = PatchDiscriminator(adversarial.width) if adversarial else None
        self.optimizer_config = optimizer or TokenizerOptimizerConfig()

    def reconstruct(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """images (B, 3, S, S) -> reconstructions (B, 3, S, S) for training, and the network's named, weighted terms."""
        raise NotImplementedError

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
        total = planned_steps(self.trainer)
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
        images, regularisers = self.reconstruct(batch)
        terms = self._terms(batch, images, regularisers)
        optimizers[0].zero_grad()
        self.manual_backward(torch.stack(list(terms.values())).sum() + nothing_of(self.discriminator))
        self._check_gradients()
        optimizers[0].step()
        scheduler: Any = self.lr_schedulers()
        scheduler.step()
        if self._adversarial_now():
            self._discriminator_step(batch, images.detach())
        self.log("train/psnr", psnr(images.detach(), batch).mean(), prog_bar=True)
        self.log_dict({f"train/{name}": value.detach() for name, value in terms.items()})
        self.log("train/loss", sum(value.detach() for value in terms.values()), prog_bar=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The network's config travels with the weights."""
        checkpoint[IDENTITY] = self._identity()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises ValueError for a checkpoint of another network."""
        check_identity(checkpoint.get(IDENTITY), self._identity(), "the checkpoint")
        check_weights(checkpoint["state_dict"], self.state_dict(), "the checkpoint")

    def _identity(self) -> dict[str, Any]:
        adversarial = self.adversarial is not None
        return plain({"model": self.tokenizer.config, "adversarial": adversarial, "perceptual": self.perceptual_weight})

    def log_quality(self, images: Tensor, targets: Tensor) -> None:
        """Log PSNR and SSIM of validation reconstructions in [-1, 1], (B, 3, S, S) both."""
        self.log("val/psnr", psnr(images, targets).mean(), prog_bar=True, batch_size=len(targets), sync_dist=True)
        self.log("val/ssim", ssim(images, targets), batch_size=len(targets), sync_dist=True)

    def _terms(self, targets: Tensor, images: Tensor, regularisers: dict[str, Tensor]) -> dict[str, Tensor]:
        terms = {"reconstruction": reconstruction_loss(images, targets, self.reconstruction), **regularisers}
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual_weight * self.perceptual(images, targets)
        if self._adversarial_now() and self.discriminator is not None and self.adversarial is not None:
            adversarial = generator_loss(self.discriminator(images))
            weight = adaptive_weight(terms["reconstruction"], adversarial, self._last_layer())
            terms["adversarial"] = self.adversarial.weight * weight * adversarial
        return terms

    def _check_gradients(self) -> None:
        """Raise FloatingPointError where they are not finite. They are the mean over ranks, so all stop together."""
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.tokenizer.parameters() if p.grad is not None])
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"the gradient norm is {float(norm)} at step {self._steps()}: lower the learning rate"
            )

    def _adversarial_now(self) -> bool:
        return (
            self.adversarial is not None and self.trainer.current_epoch >= 0 and self._steps() >= self.adversarial.start
        )

    def _steps(self) -> int:
        scheduler: Any = self.lr_schedulers()
        return scheduler.last_epoch

    def _last_layer(self) -> Tensor:
        decoder = self.tokenizer.decoder
        assert isinstance(decoder, nn.Module)
        convolutions = [module for module in decoder.modules() if isinstance(module, nn.Conv2d)]
        return convolutions[-1].weight

    def _discriminator_step(self, real: Tensor, fake: Tensor) -> None:
        assert self.discriminator is not None
        # Lightning counts the steps of its own wrappers towards max_steps; the discriminator's are not to shorten a run
        optimizer = _as_list(self.optimizers(use_pl_optimizer=False))[1]
        loss = discriminator_loss(self.discriminator(real), self.discriminator(fake))
        optimizer.zero_grad()
        self.manual_backward(loss + nothing_of(self.tokenizer))
        optimizer.step()
        self.log("train/discriminator", loss.detach())


def nothing_of(module: nn.Module | None) -> Tensor | float:
    """0, with every weight of a module in its graph: DDP waits for a gradient of each in every backward pass."""
    return 0.0 if module is None else sum((0 * weight.sum() for weight in module.parameters()), 0.0)


def _as_list(optimizers: Any) -> list[Any]:
    return optimizers if isinstance(optimizers, list) else [optimizers]
