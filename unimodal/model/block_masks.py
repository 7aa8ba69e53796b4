"""Masks in blocks for FlexAttention, made from where documents begin and end instead of from all pairs of tokens.

A row of T tokens has (T / 128)^2 blocks, and of each two numbers at its edges say whether anything in it is allowed. So
a mask costs a few small kernels, and a long row of short documents costs in attention what they cost alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from unimodal.model.masks import DocumentEnds, Mask, allowed, dense_mask

# Shapes: B rows, T tokens of a row, N blocks of a row.

BLOCK_TOKENS = 128
"""Tokens of a block, FlexAttention's own."""

PADDING = -1
"""The document of padding. It stands behind all others, and so counts as the last one."""


def training_mask(
    documents: Tensor,
    branches: Tensor | None,
    spans: Tensor | None = None,
    ends: DocumentEnds | None = None,
) -> Mask:
    """The form that trains fastest where the tensors are: dense on a CPU, blocks on CUDA.

    Where `ends` are given, plain causal documents go to FlashAttention (`kernels.has_flash` says whether they may).
    """
    if documents.device.type != "cuda":
        return dense_mask(documents, branches, spans)
    if ends is not None and branches is None and spans is None:
        return ends
    return block_mask(documents, branches, spans)


def block_mask(documents: Tensor, branches: Tensor | None = None, spans: Tensor | None = None) -> BlockMask:
    """As `dense_mask` for packed rows: (B, T) each, the documents of a row one after the other and padding behind them.

    None says that no token lies in a branch, or in a span; then the kernel does not ask. It trains on CUDA alone
    (torch 2.15).
    """

    def rule(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        del head
        of_branches = (0, 0) if branches is None else (branches[row, query], branches[row, key])
        of_spans = (0, 0) if spans is None else (spans[row, query], spans[row, key])
        return allowed(
            *(query, documents[row, query], of_branches[0]), *(key, documents[row, key], of_branches[1]), *of_spans
        )

    partial, full = blocks_of(documents, branches, spans)
    tables = torch.stack([partial, full, partial.mT, full.mT])[:, :, None]
    counts = tables.sum(-1, dtype=torch.int32)
    indices = tables.to(torch.int8).argsort(dim=-1, descending=True, stable=True).to(torch.int32)
    length = documents.shape[1]
    return BlockMask(
        seq_lengths=(length, length),
        kv_num_blocks=counts[0],
        kv_indices=indices[0],
        full_kv_num_blocks=counts[1],
        full_kv_indices=indices[1],
        q_num_blocks=counts[2],
        q_indices=indices[2],
        full_q_num_blocks=counts[3],
        full_q_indices=indices[3],
        BLOCK_SIZE=(BLOCK_TOKENS, BLOCK_TOKENS),
        mask_mod=rule,
    )


class Blocks(NamedTuple):
    """bool (B, N, N), query blocks by key blocks: in some something may be allowed, in full ones everything is."""

    partial: Tensor
    full: Tensor


def blocks_of(documents: Tensor, branches: Tensor | None, spans: Tensor | None, size: int = BLOCK_TOKENS) -> Blocks:
    """Every block of which `dense_mask` allows anything is in one of both, and in `full` only where it allows all."""
    document = _edges(torch.where(documents == PADDING, documents.shape[1], documents), size)
    index = torch.arange(document.first.shape[1], device=documents.device)
    earlier, in_order = index[:, None] > index, index[:, None] >= index
    shared = document.last[:, None] >= document.first[:, :, None]
    single = document.first == document.last
    full = single[:, None] & single[:, :, None] & (document.first[:, None] == document.first[:, :, None]) & earlier
    some = in_order & shared
    if branches is not None:
        branch = _extremes(branches, size)
        trunk = (branch.first == 0) & (branch.last == 0)
        one = (branch.first == branch.last)[:, None] & (branch.first == branch.last)[:, :, None]
        full = full & (trunk[:, None] | (one & (branch.first[:, None] == branch.first[:, :, None])))
    if spans is not None:
        span = _edges(spans, size)
        full = full & (_extremes(spans, size).first >= 0)[:, None]
        some = some | ((span.last[:, :, None] == span.first[:, None]) & (span.first != 0)[:, None] & ~earlier)
    return Blocks(some & ~full, full)


class _Numbers(NamedTuple):
    """Two numbers of each block: (B, N)."""

    first: Tensor
    last: Tensor


def _edges(values: Tensor, size: int) -> _Numbers:
    """Those of the first and the last token of each block."""
    blocks = _in_blocks(values, size)
    return _Numbers(blocks[..., 0], blocks[..., -1])


def _extremes(values: Tensor, size: int) -> _Numbers:
    """The smallest and the largest."""
    return _Numbers(*_in_blocks(values, size).aminmax(dim=-1))


def _in_blocks(values: Tensor, size: int) -> Tensor:
    """(B, T) -> (B, N, size); a last block that is not full repeats its last value."""
    missing = -values.shape[1] % size
    if missing:
        values = torch.cat([values, values[:, -1:].expand(-1, missing)], dim=1)
    return values.unflatten(1, (-1, size))
