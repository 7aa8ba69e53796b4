"""Losses: sums that equal a loop over single tokens."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from unimodal.training.losses import LossSums, next_token_losses

from tokenizers_vq.token_space import Modality

VOCABULARY, WIDTH = 11, 6
Fields = tuple[Tensor, nn.Linear, Tensor, Tensor, Tensor]


@pytest.fixture
def fields() -> Fields:
    """features, head, targets, weights, modality of two rows; a third of the weights is 0."""
    features = torch.randn(2, 9, WIDTH, dtype=torch.float64)
    head = nn.Linear(WIDTH, VOCABULARY, bias=False, dtype=torch.float64)
    weights = torch.rand(2, 9) * (torch.rand(2, 9) > 0.33)
    modality = torch.where(torch.rand(2, 9) < 0.5, int(Modality.TEXT), int(Modality.IMAGE))
    return features, head, torch.randint(VOCABULARY, (2, 9)), weights, modality


def one_by_one(fields: Fields, z_weight: float) -> dict[str, float]:
    features, head, targets, weights, modality = fields
    sums = dict.fromkeys(LossSums._fields[:-1], 0.0)
    for row in range(2):
        for token in range(9):
            weight = float(weights[row, token])
            exponentials = [math.exp(logit) for logit in head(features[row, token]).tolist()]
            surprise = -math.log(exponentials[int(targets[row, token])] / sum(exponentials))
            kind = "text" if modality[row, token] == Modality.TEXT else "image"
            sums[kind] += weight * surprise
            sums[f"{kind}_weight"] += weight
            sums["weight"] += weight
            sums["z"] += z_weight * weight * math.log(sum(exponentials)) ** 2
    return sums


@pytest.mark.parametrize("z_weight", [0.0, 1e-5, 0.5])
def test_sums_equal_those_of_a_loop_over_tokens(fields: Fields, z_weight: float) -> None:
    found = next_token_losses(*fields, z_weight)._asdict()
    assert {name: value.item() for name, value in found.items() if name != "flow"} == pytest.approx(
        one_by_one(fields, z_weight), rel=1e-5
    )


def test_tokens_without_a_weight_change_nothing_and_get_no_gradient(fields: Fields) -> None:
    features, head, targets, weights, modality = fields
    features.requires_grad_()
    before = next_token_losses(features, head, targets, weights, modality, 1e-3)
    (before.text + before.image + before.z).backward()
    assert features.grad is not None
    assert torch.equal(features.grad.abs().sum(-1) > 0, weights > 0)
    ignored = weights == 0
    changed = torch.where(ignored[..., None], 100.0, features.detach())
    other_targets = torch.where(ignored, (targets + 1) % VOCABULARY, targets)
    after = next_token_losses(changed, head, other_targets, weights, modality, 1e-3)
    for one, other in zip(before[:-1], after[:-1], strict=True):
        assert one.item() == other.item()


def test_a_batch_without_any_weight_has_sums_of_zero_that_can_be_differentiated(fields: Fields) -> None:
    features, head, targets, weights, modality = fields
    features.requires_grad_()
    sums = next_token_losses(features, head, targets, torch.zeros_like(weights), modality, 1e-3)
    assert all(value.item() == 0 for value in sums[:-1])
    (sums.text + sums.image + sums.z).backward()


def test_twice_the_weight_is_twice_the_sum(fields: Fields) -> None:
    features, head, targets, weights, modality = fields
    once = next_token_losses(features, head, targets, weights, modality, 0.1)
    twice = next_token_losses(features, head, targets, 2 * weights, modality, 0.1)
    for one, other in zip(once[:-1], twice[:-1], strict=True):
        assert other.item() == pytest.approx(2 * one.item(), rel=1e-6)
