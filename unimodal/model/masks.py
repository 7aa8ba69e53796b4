"""Who may look at whom: one predicate, from which every attention backend takes its mask."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

# Shapes: B batch, T tokens (queries Q, keys K).

Mask = Tensor | BlockMask
"""True where attention is allowed, or the same in blocks for FlexAttention."""


def allowed(
    query_index: Any,
    query_document: Any,
    query_branch: Any,
    key_index: Any,
    key_document: Any,
    key_branch: Any,
) -> Any:
    """A token sees the earlier tokens of its own document, and of its branches only its own.

    Branch 0 is the trunk of a document; branches 1, 2, ... continue it without seeing each other, so that many
    questions share one image. Written with `&`, `|` and comparisons alone, so it works on tensors and in a
    FlexAttention `mask_mod`.
    """
    causal = query_index >= key_index
    same_document = query_document == key_document
    same_branch = (key_branch == 0) | (key_branch == query_branch)
    return causal & same_document & same_branch


def dense_mask(documents: Tensor, branches: Tensor | None = None) -> Tensor:
    """documents, branches (B, T) -> bool (B, 1, T, T), True where attention is allowed.

    Padding (document -1) sees only padding, so no row is empty.
    """
    index = torch.arange(documents.shape[1], device=documents.device)
    branches = torch.zeros_like(documents) if branches is None else branches
    return allowed(
        index[:, None], documents[:, :, None], branches[:, :, None], index[None], documents[:, None], branches[:, None]
    ).unsqueeze(1)


def block_mask(documents: Tensor, branches: Tensor) -> BlockMask:
    """As `dense_mask`, in blocks: FlexAttention leaves out every block in which nothing is allowed, so that a long row
    of short documents costs what they cost alone. It trains on CUDA alone (torch 2.15)."""

    def rule(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        del head
        return allowed(query, documents[row, query], branches[row, query], key, documents[row, key], branches[row, key])

    rows, length = documents.shape
    return create_block_mask(rule, rows, None, length, length, device=documents.device)


def training_mask(documents: Tensor, branches: Tensor) -> Mask:
    """The form that trains fastest where the tensors are: blocks on CUDA, dense elsewhere."""
    return (block_mask if documents.device.type == "cuda" else dense_mask)(documents, branches)


def causal_mask(length: int, device: torch.device) -> Tensor:
    """bool (1, 1, T, T): one document a row."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()[None, None]


def cached_mask(positions: Tensor, num_keys: int) -> Tensor:
    """positions (B, Q) of the queries -> bool (B, 1, Q, K) over a cache whose slot j holds position j.

    What lies past a row's own position is left over from padding or an older request and stays unseen.
    """
    slots = torch.arange(num_keys, device=positions.device)
    return (slots <= positions[..., None]).unsqueeze(1)


def as_bias(mask: Mask, dtype: torch.dtype) -> Mask:
    """What attention takes: a dense mask made additive, blocks as they are."""
    return mask if isinstance(mask, BlockMask) else additive(mask, dtype)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """bool mask -> 0 where allowed, -inf elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))
