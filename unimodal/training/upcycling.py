"""Upcycling: a mixture of experts that starts from a dense model (arXiv 2212.05055).

Experts that are copies of one dense part stay alike: they get the same gradients. So each takes hidden units of its own
choice, and a share of them is drawn anew (drop-upcycling, arXiv 2502.19261). Down-projections are scaled so that the
sum over the active experts is the dense part's, but for what was drawn anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unimodal.model.config import INIT_STD, TransformerConfig
from unimodal.model.feedforward.config import MoEConfig
from unimodal.model.model import UnifiedModel
from unimodal.model.sharded import write_rows

# Shapes: E experts, H hidden units of one, D model width.

PART = "feed_forward."


@dataclass(frozen=True, kw_only=True)
class UpcyclingConfig:
    """`redraw` is the share of each expert's hidden units that are drawn anew."""

    redraw: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.redraw <= 1:
            raise ValueError(f"start.upcycling.redraw is a share from 0 to 1, got {self.redraw}")


class DensePart(NamedTuple):
    """A dense feed-forward part: gate and up (H, D), down (D, H)."""

    gate: Tensor
    up: Tensor
    down: Tensor


def expert_layers(model: UnifiedModel) -> Iterator[str]:
    """The prefixes of names of the feed-forward parts that have experts."""
    trunk = model.config.trunk
    if trunk.moe:
        yield from (f"trunk.blocks.{layer}.{PART}" for layer in range(trunk.moe.first_dense, trunk.num_layers))


def upcycle(model: UnifiedModel, dense: Mapping[str, Any], config: UpcyclingConfig) -> set[str]:
    """Fill the experts from the dense parts of `dense` (by our names); the names that were set. Routers stay new.

    Raises ValueError for experts that are wider than the dense part.
    """
    trunk, present, written = model.config.trunk, dict(model.state_dict()), set[str]()
    assert trunk.moe is not None
    generator = torch.Generator().manual_seed(config.seed)
    for prefix in expert_layers(model):
        part = DensePart(*(dense[f"{prefix}{name}_proj.weight"][:] for name in ("gate", "up", "down")))
        if trunk.moe.hidden_dim > len(part.gate):
            raise ValueError(
                f"start.upcycling: experts of {trunk.moe.hidden_dim} hidden units, {len(part.gate)} to take them from"
            )
        made = _experts(part, trunk, config, generator)
        for name, tensor in zip(("gate", "up", "down"), made, strict=True):
            write_rows(present[f"{prefix}experts.{name}_proj"], tensor)
            written.add(f"{prefix}experts.{name}_proj")
        if trunk.moe.shared:
            for name, tensor in zip(("gate", "up", "down"), _shared(part, trunk.moe, generator), strict=True):
                write_rows(present[f"{prefix}shared.{name}_proj.weight"], tensor)
                written.add(f"{prefix}shared.{name}_proj.weight")
    return written


def _experts(
    part: DensePart, trunk: TransformerConfig, config: UpcyclingConfig, generator: torch.Generator
) -> DensePart:
    """(E, H, D), (E, H, D), (E, D, H)."""
    moe, width = trunk.moe, len(part.gate)
    assert moe is not None
    found = []
    for _ in range(moe.experts):
        units = torch.randperm(width, generator=generator)[: moe.hidden_dim]
        gate, up, down = part.gate[units].clone(), part.up[units].clone(), part.down[:, units] * _scale(moe, width)
        count = round(config.redraw * moe.hidden_dim)
        for matrix, std in ((gate, INIT_STD), (up, INIT_STD)):
            matrix[:count] = std * torch.randn(count, matrix.shape[1], generator=generator)
        down[:, :count] = trunk.residual_std * torch.randn(len(down), count, generator=generator)
        found.append((gate, up, down))
    return DensePart(*(torch.stack(each) for each in zip(*found, strict=True)))


def _shared(part: DensePart, moe: MoEConfig, generator: torch.Generator) -> DensePart:
    """Units as they are, more than once where the shared experts are wider than the dense part."""
    width, wanted = len(part.gate), moe.shared * moe.hidden_dim
    rounds = -(-wanted // width)
    units = torch.cat([torch.randperm(width, generator=generator) for _ in range(rounds)])[:wanted]
    return DensePart(part.gate[units], part.up[units], part.down[:, units] * _scale(moe, width))


def _scale(moe: MoEConfig, width: int) -> float:
    """Of down-projections: all active experts together have more or fewer units than the dense part."""
    even = 0.5 if moe.scores == "sigmoid" else 1 / moe.experts  # a score of a router that has learnt nothing
    gates = moe.scale * (1.0 if moe.normalized else even * moe.top_k)
    return width / (moe.hidden_dim * (gates + moe.shared))
