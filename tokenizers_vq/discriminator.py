"""The adversarial term: a PatchGAN discriminator with hinge losses, as in VQGAN (arXiv 2012.09841, section 3.1)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class AdversarialLossConfig:
    """The discriminator joins at `start` steps; its weight adapts to the reconstruction gradient, times `weight`."""

    start: int = 1000
    weight: float = 0.5
    width: int = 32
    learning_rate: float = 2e-4


class PatchDiscriminator(nn.Module):
    """One logit for every patch of the image: real or reconstructed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width, width * 2, width * 4]
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for a, b in itertools.pairwise(widths):
            layers += [nn.Conv2d(a, b, 4, stride=2, padding=1), nn.GroupNorm(8, b), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, 1, S/8, S/8)."""
        return self.layers(images)


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Hinge: real above 1, reconstructed below -1."""
    return 0.5 * (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean())


def generator_loss(fake_logits: Tensor) -> Tensor:
    """What the tokenizer gains by looking real."""
    return -fake_logits.mean()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """Ratio of the two losses' gradient norms at the decoder's last layer, within [0, 1e4] (equation 7)."""
    (of_reconstruction,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    (of_adversarial,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    return (of_reconstruction.norm() / (of_adversarial.norm() + 1e-4)).clamp(0, 1e4).detach()
