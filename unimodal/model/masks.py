"""Which token may attend to which: one predicate, from which every attention backend takes its mask."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

# Shapes: B batch, T tokens (queries Q, keys K).


class DocumentEnds(NamedTuple):
    """The mask of rows that hold whole documents of plain causal text and nothing else, for FlashAttention."""

    ends: Tensor
    """(N + 1,) int32: 0, and where each document of the flattened rows ends; empty ones may follow."""
    max_length: int
    """At least the tokens of the longest document."""


Mask = Tensor | BlockMask | DocumentEnds
"""True where attention is allowed, or the same in blocks for FlexAttention, or as ends of documents."""


def allowed(
    query_index: Any,
    query_document: Any,
    query_branch: Any,
    key_index: Any,
    key_document: Any,
    key_branch: Any,
    query_span: Any = 0,
    key_span: Any = 0,
) -> Any:
    """A token sees the earlier tokens of its own document, of its branches only its own, and its whole span.

    Branch 0 is the trunk of a document; branches 1, 2, ... continue it without seeing each other, so that many
    questions share one image. Span 0 is plain causal text; the tokens of another span see each other in both
    directions, and a span below 0 is a noised image, which nobody outside it sees: generalized causal attention
    (BAGEL, arXiv 2505.14683, section 2.2). Written with `&`, `|` and comparisons alone, so it works on tensors and in
    a FlexAttention `mask_mod`.
    """
    causal = query_index >= key_index
    same_document = query_document == key_document
    same_branch = (key_branch == 0) | (key_branch == query_branch)
    same_span = key_span == query_span
    in_order = causal | (same_span & (key_span != 0))
    return in_order & same_document & same_branch & ((key_span >= 0) | same_span)


def dense_mask(documents: Tensor, branches: Tensor | None = None, spans: Tensor | None = None) -> Tensor:
    """documents, branches, spans (B, T) -> bool (B, 1, T, T), True where attention is allowed.

    Padding (document -1) sees only padding, so no row is empty.
    """
    index = torch.arange(documents.shape[1], device=documents.device)
    branches = torch.zeros_like(documents) if branches is None else branches
    of_queries = (index[:, None], documents[:, :, None], branches[:, :, None])
    of_keys = (index[None], documents[:, None], branches[:, None])
    if spans is None:
        return allowed(*of_queries, *of_keys).unsqueeze(1)
    return allowed(*of_queries, *of_keys, spans[:, :, None], spans[:, None]).unsqueeze(1)


def causal_mask(length: int, device: torch.device) -> Tensor:
    """bool (1, 1, T, T): one document a row."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()[None, None]


def cached_mask(slots: Tensor, num_keys: int) -> Tensor:
    """slots (B, Q) of the queries -> bool (B, 1, Q, K) over a cache whose rows are filled from slot 0 on.

    What lies past a query's own slot is left over from padding or an older request and stays invisible.
    """
    keys = torch.arange(num_keys, device=slots.device)
    return (keys <= slots[..., None]).unsqueeze(1)


def as_bias(mask: Mask, dtype: torch.dtype) -> Mask:
    """What attention takes: a dense mask made additive, other forms as they are."""
    return additive(mask, dtype) if isinstance(mask, Tensor) else mask


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """bool mask -> 0 where allowed, -inf elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))
