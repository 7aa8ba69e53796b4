"""Reconstruction scores, gathered over batches."""

import math

import pytest
import torch

from unimodal.evaluation.metrics.images import ReconstructionScores


def scored(batches: list[int]) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    originals = torch.rand(6, 3, 16, 16, generator=generator) * 2 - 1
    copies = (originals + 0.1).clamp(-1, 1)
    codes = torch.tensor([0, 0, 1, 1, 2, 2])[:, None].expand(6, 4)
    scores = ReconstructionScores(codebook_size=8)
    for own in zip(originals.split(batches), copies.split(batches), codes.split(batches), strict=True):
        scores.update(*own)
    return scores.metrics()


def test_batches_of_any_size_give_the_same_scores() -> None:
    whole, parts = scored([6]), scored([4, 1, 1])
    assert parts == pytest.approx(whole, rel=1e-5)


def test_codes_are_counted_over_all_batches() -> None:
    metrics = scored([2, 2, 2])
    assert metrics["codebook_use"] == pytest.approx(3 / 8)
    assert metrics["perplexity"] == pytest.approx(3, rel=1e-5)


def test_psnr_is_that_of_the_definition() -> None:
    scores = ReconstructionScores(codebook_size=1)
    black = torch.full((2, 3, 16, 16), -1.0)
    scores.update(black, black + 0.02, torch.zeros(2, 1, dtype=torch.int64))
    assert scores.metrics()["psnr"] == pytest.approx(20 * math.log10(2 / 0.02), rel=1e-4)


def test_no_picture_is_an_error() -> None:
    with pytest.raises(ValueError, match="no picture"):
        ReconstructionScores(codebook_size=2).metrics()
