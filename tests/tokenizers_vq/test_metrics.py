"""Metrics of the image tokenizer, against values known beforehand."""

from __future__ import annotations

import math

import pytest
import torch

from tests.oracles.pictures import random_images
from tokenizers_vq.metrics import code_counts, codebook_use, perplexity, psnr, ssim


def test_psnr_of_a_known_error_for_each_image() -> None:
    targets = torch.zeros(2, 3, 4, 4)
    images = torch.stack([torch.full((3, 4, 4), 0.2), torch.full((3, 4, 4), 0.02)])
    assert psnr(images, targets).tolist() == pytest.approx([20.0, 40.0], abs=1e-3)


def test_psnr_of_equal_pictures_is_finite_and_high() -> None:
    images = random_images(2)
    assert (psnr(images, images) > 100).all() and torch.isfinite(psnr(images, images)).all()


def test_ssim_is_one_for_equal_pictures_and_falls_with_noise() -> None:
    images = random_images(4)
    assert float(ssim(images, images)) == pytest.approx(1.0, abs=1e-4)
    little, much = (float(ssim(images + scale * torch.randn_like(images), images)) for scale in (0.05, 0.5))
    assert 0.99 > little > much


def test_code_counts_count_every_code() -> None:
    assert code_counts(torch.tensor([[0, 2], [2, 2]]), 4).tolist() == [1, 0, 3, 0]


def test_codebook_use_is_the_share_of_codes_that_occur() -> None:
    assert float(codebook_use(torch.tensor([5, 0, 1, 0]))) == 0.5


@pytest.mark.parametrize("size", [1, 2, 16, 1000])
def test_perplexity_of_a_uniform_codebook_is_its_size(size: int) -> None:
    assert float(perplexity(torch.full((size,), 7))) == pytest.approx(size, rel=1e-4)


def test_perplexity_of_one_code_is_one_and_of_a_known_distribution_known() -> None:
    assert float(perplexity(torch.tensor([0, 9, 0]))) == pytest.approx(1)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert float(perplexity(torch.tensor([3, 1, 0]))) == pytest.approx(math.exp(entropy))
