"""The gradient that each modality asks for. Where one of them is many times the other, they compete."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from unimodal.training.objectives.base import Terms

MODALITIES = ("text", "image", "flow")
"""Terms of the loss whose gradients are told apart."""


def modality_gradients(model: nn.Module, terms: Terms) -> Mapping[str, float]:
    """`grad_norm_text`, ...: the norm of the gradient of a term's mean over the tokens of all ranks, which all call it.

    The graph of the terms is used up.
    """
    parameters = [one for one in model.parameters() if one.requires_grad]
    found: dict[str, float] = {}
    for name in (name for name in MODALITIES if name in terms):
        term = terms[name]
        weight = term.weight.detach().double().clone()
        gradients = torch.autograd.grad(term.weighted, parameters, retain_graph=True, allow_unused=True)
        flat = torch.cat([_or_zero(one, of).flatten().float() for one, of in zip(gradients, parameters, strict=True)])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(flat)
            dist.all_reduce(weight)
        if float(weight):
            found[f"grad_norm_{name}"] = float(flat.norm() / weight)
    return found


def _or_zero(gradient: Tensor | None, parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if gradient is None else gradient
