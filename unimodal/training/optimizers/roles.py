"""The role of each parameter, decided by the type of its module: hidden matrix, table or vector."""

from __future__ import annotations

from typing import Literal, get_args

from torch import nn

from unimodal.model.attention import HeadLayerNorm
from unimodal.model.branches.vision.resampler import Queries
from unimodal.model.branches.vision.siglip import SiglipEncoder
from unimodal.model.feedforward.experts import Experts
from unimodal.model.linear import BoundaryLinear

Role = Literal["matrix", "table", "vector"]
"""Hidden matrices; embeddings and projections into or out of the trunk; norms and biases."""

NORMS = (nn.RMSNorm, nn.LayerNorm, HeadLayerNorm)
TABLES = (nn.Embedding, BoundaryLinear, SiglipEncoder, Queries)


def parameter_role(module: nn.Module, name: str) -> Role:
    """The role of a module's own parameter. Raises TypeError for a module of an unknown kind."""
    if isinstance(module, NORMS) or name == "bias":
        return "vector"
    if isinstance(module, TABLES):
        return "table"
    if isinstance(module, (nn.Linear, Experts)):
        return "matrix"
    raise TypeError(f"no optimizer role is known for {name} of a {type(module).__name__}")


def parameters_by_role(model: nn.Module) -> dict[Role, list[nn.Parameter]]:
    """Each parameter once, under its role; one that modules share has the role that it has in the first of them."""
    roles: dict[Role, list[nn.Parameter]] = {role: [] for role in get_args(Role)}
    known: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in known:
                known.add(id(parameter))
                roles[parameter_role(module, name)].append(parameter)
    return roles
