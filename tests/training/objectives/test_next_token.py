"""Next-token prediction: terms that equal a loop over single tokens."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tokenizers_vq.token_space import Modality
from unimodal.model.token_head import TokenHead
from unimodal.training.objectives.base import Terms, total
from unimodal.training.objectives.next_token import next_token_terms

VOCABULARY, WIDTH = 11, 6
Fields = tuple[Tensor, TokenHead, Tensor, Tensor, Tensor]


@pytest.fixture
def fields() -> Fields:
    """features, head, targets, weights, modality of two rows; a third of the weights is 0."""
    features = torch.randn(2, 9, WIDTH, dtype=torch.float64)
    head = TokenHead(WIDTH, VOCABULARY).double()
    weights = torch.rand(2, 9) * (torch.rand(2, 9) > 0.33)
    modality = torch.where(torch.rand(2, 9) < 0.5, int(Modality.TEXT), int(Modality.IMAGE))
    return features, head, torch.randint(VOCABULARY, (2, 9)), weights, modality


def numbers(terms: Terms) -> dict[str, tuple[float, float]]:
    return {name: (term.weighted.item(), term.weight.item()) for name, term in terms.items()}


def one_by_one(fields: Fields, z_weight: float) -> dict[str, tuple[float, float]]:
    features, head, targets, weights, modality = fields
    weighted, summed = dict.fromkeys(("text", "image", "z_loss"), 0.0), dict.fromkeys(("text", "image", "z_loss"), 0.0)
    for row in range(2):
        for token in range(9):
            weight = float(weights[row, token])
            exponentials = [math.exp(logit) for logit in head(features[row, token]).tolist()]
            surprise = -math.log(exponentials[int(targets[row, token])] / sum(exponentials))
            kind = "text" if modality[row, token] == Modality.TEXT else "image"
            weighted[kind] += weight * surprise
            weighted["z_loss"] += z_weight * weight * math.log(sum(exponentials)) ** 2
            for name in (kind, "z_loss"):
                summed[name] += weight
    return {name: (weighted[name], summed[name]) for name in weighted}


@pytest.mark.parametrize("z_weight", [0.0, 1e-5, 0.5])
def test_terms_equal_those_of_a_loop_over_tokens(fields: Fields, z_weight: float) -> None:
    found, expected = numbers(next_token_terms(*fields, z_weight)), one_by_one(fields, z_weight)
    assert found.keys() == expected.keys()
    for name, pair in found.items():
        assert pair == pytest.approx(expected[name], rel=1e-5), name


def test_tokens_without_a_weight_change_nothing_and_get_no_gradient(fields: Fields) -> None:
    features, head, targets, weights, modality = fields
    features.requires_grad_()
    before = next_token_terms(features, head, targets, weights, modality, 1e-3)
    total(before).backward()
    assert features.grad is not None
    assert torch.equal(features.grad.abs().sum(-1) > 0, weights > 0)
    ignored = weights == 0
    changed = torch.where(ignored[..., None], 100.0, features.detach())
    other_targets = torch.where(ignored, (targets + 1) % VOCABULARY, targets)
    assert numbers(next_token_terms(changed, head, other_targets, weights, modality, 1e-3)) == numbers(before)


def test_a_batch_without_any_weight_has_terms_of_zero_that_can_be_differentiated(fields: Fields) -> None:
    features, head, targets, weights, modality = fields
    features.requires_grad_()
    terms = next_token_terms(features, head, targets, torch.zeros_like(weights), modality, 1e-3)
    assert numbers(terms) == dict.fromkeys(("text", "image", "z_loss"), (0.0, 0.0))
    total(terms).backward()


def test_twice_the_weight_is_twice_the_sum(fields: Fields) -> None:
    features, head, targets, weights, modality = fields
    once = numbers(next_token_terms(features, head, targets, weights, modality, 0.1))
    twice = numbers(next_token_terms(features, head, targets, 2 * weights, modality, 0.1))
    for name, (weighted, weight) in once.items():
        assert twice[name] == pytest.approx((2 * weighted, 2 * weight), rel=1e-6), name
