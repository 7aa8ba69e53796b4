"""Roles of parameters follow from the types of their modules."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.oracles.tiny import tiny_model
from unimodal.model.linear import BoundaryLinear
from unimodal.training.optimizers.roles import parameter_role, parameters_by_role


def test_hidden_matrices_tables_and_vectors() -> None:
    assert parameter_role(nn.Linear(2, 3), "weight") == "matrix"
    assert parameter_role(nn.Linear(2, 3), "bias") == "vector"
    assert parameter_role(nn.Embedding(2, 3), "weight") == "table"
    assert parameter_role(BoundaryLinear(2, 3), "weight") == "table"
    assert parameter_role(BoundaryLinear(2, 3), "bias") == "vector"
    assert parameter_role(nn.RMSNorm(3), "weight") == "vector"


def test_a_module_of_an_unknown_kind_is_named() -> None:
    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2, 2))

    with pytest.raises(TypeError, match="scale of a Strange"):
        parameters_by_role(nn.Sequential(nn.Linear(2, 2), Strange()))


@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_has_one_role_and_a_tied_head_is_a_table(tied: bool) -> None:
    model = tiny_model(tied_head=tied)
    roles = parameters_by_role(model)
    found = [id(parameter) for parameters in roles.values() for parameter in parameters]
    assert sorted(found) == sorted({id(parameter) for parameter in model.parameters()})
    assert any(parameter is model.token_head.weight for parameter in roles["table"])
    assert all(parameter.ndim == 2 for parameter in roles["matrix"])
    assert len(roles["table"]) == (1 if tied else 2)
