"""How far an optimizer step moves the weights, and how large the gains of QK-norm are."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from unimodal.model.attention import HeadLayerNorm, HeadRMSNorm
from unimodal.model.sharded import local_parts
from unimodal.training.monitors.sums import MonitorSums
from unimodal.training.optimizers.roles import parameters_by_role

COMPARED_NUMBERS = 2**14
"""Of a parameter that are compared; a larger one is read at even distances."""
PLURAL = {"matrix": "matrices", "table": "tables", "vector": "vectors"}


def gain_sums(model: nn.Module) -> MonitorSums:
    """`qk_gain`: the largest weight of all norms of queries and keys, by absolute value."""
    weights = [module.weight for module in model.modules() if isinstance(module, HeadLayerNorm | HeadRMSNorm)]
    if not weights:
        return MonitorSums()
    gains = [part.detach().abs().amax().float() for part in local_parts(weights) if part.numel()]
    none = torch.zeros((), device=weights[0].device)  # of a rank that has no row of any
    return MonitorSums(largest={"qk_gain": torch.stack([none, *gains]).amax()})


@dataclass(kw_only=True)
class Updates:
    """`update_matrices`, `update_tables`, `update_vectors`: |new - old| / |old| of what is trained, by role."""

    _before: dict[str, list[Tensor]] = field(default_factory=dict)

    def before(self, model: nn.Module) -> None:
        """Keep numbers of all weights; a step follows."""
        self._before = {role: [_numbers(one) for one in of_role] for role, of_role in _trained(model).items()}

    def after(self, model: nn.Module) -> MonitorSums:
        """The squares of what has moved since `before`; nothing where that was not called."""
        means: dict[str, tuple[Tensor, Tensor]] = {}
        trained = _trained(model) if self._before else {}
        none = torch.zeros((), device=next(model.parameters()).device)  # of a role in which nothing is trained
        for role, old in self._before.items():
            new = [_numbers(one) for one in trained[role]]
            moved = sum(((n - o).square().sum() for n, o in zip(new, old, strict=True)), none)
            means[f"update_{PLURAL[role]}"] = (moved, sum((o.square().sum() for o in old), none))
        self._before = {}
        return MonitorSums(means=means)


def ratios(squares: dict[str, float]) -> dict[str, float]:
    """Means of squares -> their roots."""
    return {name: value**0.5 for name, value in squares.items()}


def _trained(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    roles = parameters_by_role(model)
    return {role: [one for one in of_role if one.requires_grad] for role, of_role in roles.items()}


def _numbers(parameter: nn.Parameter) -> Tensor:
    """Up to COMPARED_NUMBERS of what lies on this rank, in float32."""
    flat = local_parts([parameter.detach()])[0].flatten()
    return flat[:: max(1, -(-len(flat) // COMPARED_NUMBERS))].float().clone()
