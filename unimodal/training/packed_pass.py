"""A pass over packed rows: their mask in the form that trains fastest, and features before the heads."""

from __future__ import annotations

import torch
from torch import Tensor

from data_pipelines.batch import PackedBatch
from unimodal.generation.batch_media import media_tokens
from unimodal.model.block_masks import training_mask
from unimodal.model.branches.base import Branch, MediaBatch, MediaTokens
from unimodal.model.inference.compiling import sizes_vary
from unimodal.model.kernels import has_flash
from unimodal.model.masks import DocumentEnds, Mask
from unimodal.model.model import UnifiedModel
from unimodal.model.transformer import compute_dtype

# Shapes: B rows, T tokens, D model width.


def packed_mask(model: UnifiedModel, batch: PackedBatch) -> Mask:
    """Who attends to whom in the rows of a batch, for this model's attention where the batch is."""
    facts, branches = batch.facts, batch.branches if batch.facts.has_branches else None
    trunk, weight = model.config.trunk, model.trunk.embedding.weight
    flash = has_flash(batch.tokens.device, compute_dtype(weight), trunk.head_dim)
    ends = DocumentEnds(facts.ends, facts.max_length) if flash else None
    return training_mask(batch.documents, branches, batch.spans, ends)


def packed_features(model: UnifiedModel, batch: PackedBatch, media: MediaBatch) -> Tensor:
    """Features (B, T, D) of packed rows under a model."""
    sizes_vary(tensor for each in media.values() for tensor in each if isinstance(tensor, Tensor))
    return model(batch.tokens, batch.positions, packed_mask(model, batch), media=media)


def clean_media(model: UnifiedModel, batch: PackedBatch) -> MediaBatch:
    """Clean media for each branch; empty ones where a batch has none, so that every weight has a gradient."""
    media: dict[str, MediaTokens] = {name: media_tokens(packed) for name, packed in batch.media.items()}
    for name, branch in model.branches.items():
        assert isinstance(branch, Branch)
        media.setdefault(name, branch.empty(torch.zeros((), dtype=model.dtype, device=batch.tokens.device)))
    return media
