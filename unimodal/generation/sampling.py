"""Sampling: logits and noise become a token. Plain functions of tensors; every row has its own settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from unimodal.generation.settings import check_setting

# Shapes: B rows, V vocabulary.

COLDEST = 1e-4
"""The least temperature above 0: below, logits in float32 could overflow."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Temperature 0 takes the likeliest token; top_k 0 and top_p 1 leave all tokens in."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "top_k"):
            check_setting(name, getattr(self, name))
        if 0 < self.temperature < COLDEST:
            raise ValueError(f"a temperature is 0 or at least {COLDEST:g}, got {self.temperature}")


def exact(logits: Tensor) -> Tensor:
    """In float32 at least, which sampling works in."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class RowSampling(NamedTuple):
    """The settings of a batch: temperature, top_p (B,) float32 and top_k (B,) int64.

    `greedy`, `by_rank` and `by_mass` say whether any row takes the likeliest token, uses top_k or uses top_p, so that
    a batch in which none does pays nothing for it.
    """

    temperature: Tensor
    top_p: Tensor
    top_k: Tensor
    greedy: bool
    by_rank: bool
    by_mass: bool

    @classmethod
    def of(cls, configs: Sequence[SamplingConfig], device: torch.device | str = "cpu") -> RowSampling:
        """One row for each config."""
        return cls(
            torch.tensor([config.temperature for config in configs], dtype=torch.float32, device=device),
            torch.tensor([config.top_p for config in configs], dtype=torch.float32, device=device),
            torch.tensor([config.top_k for config in configs], dtype=torch.int64, device=device),
            any(config.temperature == 0 for config in configs),
            any(config.top_k > 0 for config in configs),
            any(config.top_p < 1 for config in configs),
        )

    def map(self, function: Callable[[Tensor], Tensor]) -> RowSampling:
        """The same settings, each of their tensors through a function."""
        temperature, top_p, top_k = map(function, (self.temperature, self.top_p, self.top_k))
        return self._replace(temperature=temperature, top_p=top_p, top_k=top_k)


def distribution(logits: Tensor, rows: RowSampling) -> Tensor:
    """logits (B, V), -inf where forbidden, `exact` -> what tokens are drawn from: (B, V), not normalised to 1.

    Temperature, then top-k, then top-p over what is left. A row of temperature 0 gets its distribution at 1.
    """
    scaled = logits / torch.where(rows.temperature > 0, rows.temperature, 1).to(logits.dtype)[:, None]
    if not (rows.by_rank or rows.by_mass):
        return scaled.softmax(-1)
    values, order = torch.sort(scaled, dim=-1, descending=True, stable=True)
    rank = torch.arange(values.shape[-1], device=values.device)
    limit = torch.where(rows.top_k > 0, rows.top_k, values.shape[-1])
    probabilities = values.masked_fill(rank >= limit[:, None], float("-inf")).softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    kept = probabilities.masked_fill(before >= rows.top_p[:, None], 0)
    kept = torch.where((rows.top_p < 1)[:, None], kept, probabilities)
    return torch.zeros_like(kept).scatter_(-1, order, kept)


def pick(logits: Tensor, noise: Tensor, rows: RowSampling) -> tuple[Tensor, Tensor]:
    """logits as above, noise (B, V) of `exponentials` -> tokens (B,) and the logarithms of their probabilities (B,).

    The token is the id whose probability divided by its noise is the largest, so it depends on a row's own logits,
    settings and noise alone.
    """
    probabilities = distribution(logits, rows)
    tokens = (probabilities / noise).argmax(-1, keepdim=True)
    if rows.greedy:
        tokens = torch.where((rows.temperature > 0)[:, None], tokens, logits.argmax(-1, keepdim=True))
    drawn = probabilities.gather(-1, tokens).double()
    total = probabilities.sum(-1, keepdim=True, dtype=torch.float64)
    return tokens[:, 0], (drawn / total).log()[:, 0].to(logits.dtype)
