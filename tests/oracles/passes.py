"""Forward passes in one line: logits of tokens, and media where they stand in a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unimodal.model.branches.base import MediaTokens
from unimodal.model.branches.flow import FlowBranch
from unimodal.model.branches.vision.branch import VisionBranch
from unimodal.model.model import LATENTS, PATCHES, VELOCITY, UnifiedModel

# Shapes: B batch, T tokens, M media tokens, C numbers per token, V vocabulary.


def logits(model: UnifiedModel, *arguments: Any, **named: Any) -> Tensor:
    """The arguments of a forward pass -> (B, T, V)."""
    return model.token_head(model(*arguments, **named))


def velocity(model: UnifiedModel, features: Tensor, media: MediaTokens) -> Tensor:
    """Features (B, T, D) of a batch -> (M, C) of its latents."""
    return model.heads[VELOCITY](features.flatten(0, 1)[media.index])


def flow_branch(model: UnifiedModel) -> FlowBranch:
    """The branch of latents."""
    branch = model.branches[LATENTS]
    assert isinstance(branch, FlowBranch)
    return branch


def vision_branch(model: UnifiedModel) -> VisionBranch:
    """The branch of patches."""
    branch = model.branches[PATCHES]
    assert isinstance(branch, VisionBranch)
    return branch


def media_at(standing: Tensor, values: Tensor, row_col: Tensor, times: Tensor | None = None) -> MediaTokens:
    """Media (M, C) at the True tokens of standing (B, T), with row and column (M, 2) in the grid of one image."""
    grids = (tuple(int(side) + 1 for side in row_col.amax(0)),) if len(row_col) else ()
    index = standing.flatten().nonzero().squeeze(1)
    return MediaTokens(index, values, row_col, grids, times)  # pyright: ignore[reportArgumentType]


def on_table(places: Tensor, grid_size: int) -> Tensor:
    """Rows (M,) of a table of positions -> row and column (M, 2) in the grid."""
    return torch.stack([places // grid_size, places % grid_size], dim=1)
