"""Generalized advantage estimation (GAE): what each token brought beside what a value had expected."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Shapes: B answers, T tokens of the longest.


@dataclass(frozen=True, kw_only=True)
class ValueConfig:
    """A value head and its loss (PPO, arXiv 1707.06347; GAE, arXiv 1506.02438).

    `clip` keeps a value within this distance of what it was when the answer was sampled; `weight` is that of its loss.
    """

    gamma: float = 1.0
    lam: float = 0.95
    clip: float = 0.2
    weight: float = 0.5

    def __post_init__(self) -> None:
        if not (0 <= self.gamma <= 1 and 0 <= self.lam <= 1 and self.clip > 0 and self.weight >= 0):
            raise ValueError(f"gamma and lam lie in [0, 1], clip is above 0 and weight not below 0, got {self}")


def generalized_advantages(
    rewards: Tensor, values: Tensor, counted: Tensor, config: ValueConfig
) -> tuple[Tensor, Tensor]:
    """Rewards after each token, values before it and which tokens count, (B, T) each -> advantages and returns (B, T).

    delta_t = r_t + gamma V_{t+1} - V_t, A_t = delta_t + gamma lambda A_{t+1}, returns A + V. A token that does not
    count is passed over: the one before it looks at the one after it. Advantages are not whitened here.
    """
    following, running = torch.zeros_like(values[:, 0]), torch.zeros_like(values[:, 0])
    found: list[Tensor] = []
    for step in reversed(range(rewards.shape[1])):
        delta = rewards[:, step] + config.gamma * following - values[:, step]
        advantage = delta + config.gamma * config.lam * running
        here = counted[:, step]
        running, following = torch.where(here, advantage, running), torch.where(here, values[:, step], following)
        found.append(torch.where(here, advantage, torch.zeros_like(advantage)))
    advantages = torch.stack(found[::-1], dim=1)
    return advantages, torch.where(counted, advantages + values, torch.zeros_like(values))


def whitened(values: Tensor, counted: Tensor, mean: float, deviation: float, eps: float = 1e-8) -> Tensor:
    """values, counted (...) -> less the mean, by the deviation, of all that counts; 0 elsewhere."""
    return torch.where(counted, (values - mean) / (deviation + eps), torch.zeros_like(values))


def value_losses(values: Tensor, returns: Tensor, old_values: Tensor, clip: float) -> Tensor:
    """(M,) each -> the clipped squared error of each token, halved: 0.5 max((V - R)^2, (clip(V) - R)^2)."""
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())
