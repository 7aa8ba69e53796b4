"""Gradients between backward pass and optimizer: one norm gives the bits that two gave."""

from __future__ import annotations

import copy

import torch

from tests.oracles.tiny import tiny_model
from unimodal.model.model import UnifiedModel
from unimodal.training.gradients import gradients_of, to_means
from unimodal.training.optimizers.build import MuonConfig, build_optimizer


def with_gradients(seed: int) -> UnifiedModel:
    model, generator = tiny_model(dtype=torch.float32), torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator) * 37
    return model


def test_mean_and_clipping_are_those_of_the_plain_formula_to_the_bit() -> None:
    """Lightning clips by the norm over the optimizer's groups, and a norm's last bit depends on the order."""
    for seed in range(20):
        plain, weight = with_gradients(seed), torch.tensor(61.0 + seed)
        model = copy.deepcopy(plain)
        for one, other in zip(model.parameters(), plain.parameters(), strict=True):
            one.grad = None if other.grad is None else other.grad.clone()
        grouped = [p for group in build_optimizer(plain, MuonConfig()).param_groups for p in group["params"]]
        for parameter in grouped:
            assert parameter.grad is not None
            parameter.grad.mul_(1 / float(weight))
        torch.nn.utils.clip_grad_norm_(grouped, 1.0)
        norm = to_means(gradients_of(build_optimizer(model, MuonConfig())), weight)
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), 1.0, norm)
        for one, other in zip(model.parameters(), plain.parameters(), strict=True):
            assert one.grad is not None and other.grad is not None and torch.equal(one.grad, other.grad)
