"""Which optimizer a run takes, and which parameter goes into which of its groups."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from unimodal.training.optimizers.muon import MuonAdamW
from unimodal.training.optimizers.roles import parameters_by_role


class OptimizerConfig:
    """The choice of an optimizer; a config names one of its subclasses.

    `rates` are factors of the learning rate by patterns of parameter names, the first that matches; 1 elsewhere.
    """

    rates: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class AdamWConfig(OptimizerConfig):
    """AdamW with Chameleon's betas (arXiv 2405.09818, table 1)."""

    learning_rate: float = 2e-3
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    rates: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_rates(self)


@dataclass(frozen=True, kw_only=True)
class MuonConfig(OptimizerConfig):
    """Muon on matrices, AdamW on embeddings, head, norms and biases."""

    learning_rate: float = 2e-2
    momentum: float = 0.95
    weight_decay: float = 0.1
    steps: int = 5
    adamw: AdamWConfig | None = None
    """For the rest; None is AdamW as it comes."""
    rates: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_rates(self)
        if self.steps < 1:
            raise ValueError(f"Muon orthogonalises in 1 step at least, got {self.steps}")


def check_rates(config: Any) -> None:
    """Raise ValueError for a learning rate or decay that is not a finite number, or negative."""
    for name in ("learning_rate", "weight_decay"):
        if not 0 <= getattr(config, name) < math.inf:
            raise ValueError(f"{name} is a finite number, not negative, got {getattr(config, name)}")
    for pattern, factor in config.rates.items():
        if not 0 <= factor < math.inf:
            raise ValueError(f"optimizer.rates: the factor of {pattern!r} is finite and not negative, got {factor}")


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Weight decay acts on matrices alone; with Muon, embedding and head stay with AdamW (Moonlight).

    Raises ValueError for a pattern of `rates` that matches no parameter.
    """
    return MuonAdamW(by_rate(model, _groups(model, config), config.rates))


def _groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    roles = parameters_by_role(model)
    matrices, tables, vectors = roles["matrix"], roles["table"], roles["vector"]
    if isinstance(config, AdamWConfig):
        return _adamw_groups(config, matrices + tables, vectors)
    if not isinstance(config, MuonConfig):
        raise ValueError(f"unknown optimizer {type(config).__name__}; use AdamWConfig or MuonConfig")
    muon = {
        "name": "matrices",
        "params": matrices,
        "muon": True,
        "lr": config.learning_rate,
        "momentum": config.momentum,
        "weight_decay": config.weight_decay,
        "steps": config.steps,
    }
    return [muon, *_adamw_groups(config.adamw or AdamWConfig(), tables, vectors)]


def by_rate(model: nn.Module, groups: Sequence[dict[str, Any]], rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """Groups split by what patterns say of the learning rates of their parameters; one without patterns stays whole."""
    if not rates:
        return list(groups)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for pattern in rates:
        if not any(fnmatchcase(name, pattern) for name in names.values()):
            raise ValueError(
                f"optimizer.rates: no parameter is called {pattern!r}; there is {next(iter(names.values()))}, ..."
            )
    found: list[dict[str, Any]] = []
    for group in groups:
        parts: dict[str, list[Any]] = {}
        for parameter in group["params"]:
            name = names[id(parameter)]
            parts.setdefault(next((p for p in rates if fnmatchcase(name, p)), ""), []).append(parameter)
        for pattern, params in parts.items():
            factor = rates[pattern] if pattern else 1.0
            title = f"{group['name']} {pattern}".strip()
            found.append({**group, "name": title, "params": params, "lr": factor * group["lr"]})
    return found


def _adamw_groups(config: AdamWConfig, decayed: Sequence[Tensor], plain: Sequence[Tensor]) -> list[dict[str, Any]]:
    shared = {
        "muon": False,
        "lr": config.learning_rate,
        "beta1": config.beta1,
        "beta2": config.beta2,
        "eps": config.eps,
    }
    return [
        {"name": "decayed", "params": decayed, "weight_decay": config.weight_decay, **shared},
        {"name": "plain", "params": plain, "weight_decay": 0.0, **shared},
    ]
