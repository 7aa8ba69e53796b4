"""Muon and AdamW in one optimizer: each part equals its own formula."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.oracles.tiny import tiny_model
from unimodal.model.model import UnifiedModel
from unimodal.training.optimizers.build import AdamWConfig, MuonConfig, OptimizerConfig, build_optimizer
from unimodal.training.optimizers.muon import NEWTON_SCHULZ, MuonAdamW, orthogonalise


def polynomial_of_singular_values(matrix: Tensor, steps: int) -> Tensor:
    """What Newton-Schulz computes, in float64 and without its iteration on matrices: U p(p(...p(S))) V^T."""
    a, b, c = NEWTON_SCHULZ
    left, singular, right = torch.linalg.svd(matrix.double() / matrix.double().norm(), full_matrices=False)
    for _ in range(steps):
        singular = a * singular + b * singular**3 + c * singular**5
    return left @ singular.diag() @ right


def train(model: UnifiedModel, optimizer: torch.optim.Optimizer, steps: int, start: int = 0) -> None:
    """Steps on random gradients that depend on the step's number alone."""
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (64, 192), (10, 80)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrices = torch.randn(3, *shape) * torch.tensor([1e-6, 1.0, 1e4])[:, None, None]
    singular = torch.linalg.svdvals(orthogonalise(matrices, 5).float())
    assert singular.min() > 0.6 and singular.max() < 1.3


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (24, 24)])
def test_orthogonalising_acts_on_the_singular_values_of_each_matrix_alone(shape: tuple[int, int]) -> None:
    matrices = torch.randn(4, *shape)
    together = orthogonalise(matrices, 5)
    for matrix, found in zip(matrices, together, strict=True):
        torch.testing.assert_close(found.double(), polynomial_of_singular_values(matrix, 5), rtol=0, atol=0.05)
        assert torch.equal(orthogonalise(matrix[None], 5)[0], found)


def test_a_zero_gradient_is_orthogonalised_to_zero() -> None:
    assert orthogonalise(torch.zeros(1, 4, 8), 5).count_nonzero() == 0


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_the_adamw_part_is_torchs_adamw(weight_decay: float) -> None:
    mine = tiny_model(dtype=torch.float32)
    theirs = copy.deepcopy(mine)
    settings: dict[str, Any] = {"lr": 3e-2, "eps": 1e-6, "weight_decay": weight_decay}
    group = {"params": list(mine.parameters()), "muon": False, "beta1": 0.8, "beta2": 0.9, **settings}
    train(mine, MuonAdamW([group]), 5)
    train(theirs, torch.optim.AdamW(theirs.parameters(), betas=(0.8, 0.9), **settings), 5)
    for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 20), (20, 6)])
def test_the_muon_part_is_moonlights_formula_for_every_matrix(shape: tuple[int, int]) -> None:
    matrices = [torch.randn(shape) for _ in range(3)]
    parameters = [torch.nn.Parameter(matrix.clone()) for matrix in matrices]
    rate, momentum, decay = 0.1, 0.9, 0.2
    group = {"params": parameters, "muon": True, "lr": rate, "momentum": momentum, "weight_decay": decay, "steps": 5}
    optimizer = MuonAdamW([group])
    buffers = [torch.zeros(shape) for _ in range(3)]
    for _ in range(3):
        gradients = [torch.randn(shape) for _ in range(3)]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
        for index, gradient in enumerate(gradients):
            buffers[index] = momentum * buffers[index] + gradient
            update = orthogonalise((gradient + momentum * buffers[index])[None], 5)[0].float()
            matrices[index] = (1 - rate * decay) * matrices[index] - rate * 0.2 * max(shape) ** 0.5 * update
    for parameter, matrix in zip(parameters, matrices, strict=True):
        torch.testing.assert_close(parameter.detach(), matrix, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("config", [MuonConfig(), AdamWConfig(), MuonConfig(adamw=AdamWConfig(learning_rate=0.1))])
def test_a_saved_optimizer_goes_on_as_if_nothing_had_happened(config: OptimizerConfig) -> None:
    unbroken = tiny_model(dtype=torch.float32)
    optimizer = build_optimizer(unbroken, config)
    train(unbroken, optimizer, 3)
    resumed = copy.deepcopy(unbroken)
    other = build_optimizer(resumed, config)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(unbroken, optimizer, 3, start=3)
    train(resumed, other, 3, start=3)
    for one, two in zip(unbroken.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("config", [MuonConfig(), AdamWConfig()])
def test_every_parameter_is_in_one_group_and_weight_decay_acts_on_matrices_alone(config: OptimizerConfig) -> None:
    model = tiny_model()
    groups = build_optimizer(model, config).param_groups
    places = {name: [g for g in groups if any(p is q for q in g["params"])] for name, p in model.named_parameters()}
    assert all(len(place) == 1 for place in places.values())
    for name, [group] in places.items():
        assert (group["weight_decay"] > 0) == ("norm" not in name), name
        hidden = "norm" not in name and not name.startswith(("trunk.embedding", "heads."))
        assert group["muon"] == (hidden and isinstance(config, MuonConfig)), name


def test_parameters_without_a_gradient_stay_as_they_are() -> None:
    model = tiny_model(dtype=torch.float32)
    before = copy.deepcopy(model.state_dict())
    build_optimizer(model, MuonConfig()).step()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(ValueError, match="use AdamWConfig or MuonConfig"):
        build_optimizer(tiny_model(), OptimizerConfig())
