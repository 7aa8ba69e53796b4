"""Scaled dot-product attention: torch's own kernel, and an exact one that trains faster on CPUs.

torch's CPU kernel spends most of a training step in its backward pass for short rows (docs/log.md, 2026-11-23).
`ChunkedAttention` computes the same function with batched matrix products over a few rows at a time, so that the
scores stay in cache and the products reach the CPU's matrix units; the scores are computed again in the backward pass.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.attention.varlen import varlen_attn

from unimodal.model.masks import DocumentEnds, Mask

# Shapes: B rows, H query heads, K key/value heads, G = H / K heads that share one, T tokens, D head width.

SCORES_AT_ONCE = 600_000
"""Scores (rows x heads x T x T) handled together; in bfloat16 about a core's second-level cache."""

TAKES_GROUPS = "enable_gqa" in inspect.signature(varlen_attn).parameters
"""Whether torch has an argument for query heads that share keys (not in 2.11, which sees it in the shapes)."""

CHUNKED_MAX_LENGTH = 512
"""Longer rows are faster in torch's kernel."""


def has_flash(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether `DocumentEnds` can be a mask: FlashAttention computes in half precision, on GPUs from Ampere on, for
    heads of up to 256 channels in eights."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16) or head_dim > 256 or head_dim % 8:
        return False
    return torch.cuda.get_device_capability(device)[0] >= 8


def attend(queries: Tensor, keys: Tensor, values: Tensor, bias: Mask) -> Tensor:
    """queries (B, H, T, D), keys and values (B, K, S, D), bias (B or 1, 1, T, S) of 0 and -inf, or in another form
    -> (B, H, T, D)."""
    grouped = queries.shape[1] != keys.shape[1]
    if isinstance(bias, DocumentEnds):
        return _within_documents(queries, keys, values, bias)
    if isinstance(bias, BlockMask):
        return flex_attention(queries, keys, values, block_mask=bias, enable_gqa=grouped)  # pyright: ignore[reportReturnType]
    trains = torch.is_grad_enabled() and queries.requires_grad
    if trains and queries.device.type == "cpu" and queries.shape[2] == keys.shape[2] <= CHUNKED_MAX_LENGTH:
        return chunked_attention(queries, keys, values, bias)
    if queries.shape[2] == 1 and grouped:
        return _one_query(queries, keys, values, bias)
    if grouped:  # said as a constant: in a compiled step with a growing cache it may be symbolic
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, enable_gqa=True)
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)


def _within_documents(queries: Tensor, keys: Tensor, values: Tensor, ends: DocumentEnds) -> Tensor:
    """FlashAttention on the documents of all rows, each by itself and causal; in half precision on CUDA."""
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (queries, keys, values))
    return packed_attention(q, k, v, ends, causal=True).unflatten(0, (len(queries), -1)).transpose(1, 2)


def packed_attention(queries: Tensor, keys: Tensor, values: Tensor, ends: DocumentEnds, *, causal: bool) -> Tensor:
    """FlashAttention within each stretch of packed tokens: queries (N, H, D), keys, values (N, K, D) -> (N, H, D)."""
    grouped: dict[str, Any] = {"enable_gqa": True} if TAKES_GROUPS and queries.shape[1] != keys.shape[1] else {}
    length, window = ends.max_length, (-1, 0) if causal else (-1, -1)
    out: Any = varlen_attn(queries, keys, values, ends.ends, ends.ends, length, length, window_size=window, **grouped)
    return out


def _one_query(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """One token a row: the G heads that share keys pass as G queries, and nothing is copied for them.

    On CPUs up to 7 times as fast as torch's own grouping (docs/log.md, 2026-11-24).
    """
    together = queries.reshape(*keys.shape[:2], -1, queries.shape[-1])
    return F.scaled_dot_product_attention(together, keys, values, attn_mask=bias).reshape(queries.shape)


def chunked_attention(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """As `attend`, for queries and keys of equal length, with its own backward pass."""
    return ChunkedAttention.apply(queries, keys, values, bias)  # pyright: ignore[reportReturnType]


class ChunkedAttention(torch.autograd.Function):
    """softmax(q k^T / sqrt(D) + bias) v, a few rows at a time."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        queries, keys, values = queries.contiguous(), keys.contiguous(), values.contiguous()
        bias = bias.expand(queries.shape[0], -1, -1, -1)
        out = torch.empty_like(queries)
        for rows in _chunks(queries):
            q, k, v = (_heads_together(x[rows], keys.shape[1]) for x in (queries, keys, values))
            probabilities = _probabilities(q, k, bias[rows])
            out[rows] = torch.bmm(probabilities, v).view(out[rows].shape)
        ctx.save_for_backward(queries, keys, values, bias)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        queries, keys, values, bias = ctx.saved_tensors
        grad = grads[0].contiguous()
        grad_q, grad_k, grad_v = torch.empty_like(queries), torch.empty_like(keys), torch.empty_like(values)
        scale = queries.shape[-1] ** -0.5
        for rows in _chunks(queries):
            q, k, v, g = (_heads_together(x[rows], keys.shape[1]) for x in (queries, keys, values, grad))
            probabilities = _probabilities(q, k, bias[rows])
            grad_v[rows] = torch.bmm(probabilities.transpose(1, 2), g).view(grad_v[rows].shape)
            grad_p = torch.bmm(g, v.transpose(1, 2))
            grad_s = torch.ops.aten._softmax_backward_data(grad_p, probabilities, -1, q.dtype).mul_(scale)
            grad_q[rows] = torch.bmm(grad_s, k).view(grad_q[rows].shape)
            grad_k[rows] = torch.bmm(grad_s.transpose(1, 2), q).view(grad_k[rows].shape)
        return grad_q, grad_k, grad_v, None


def _chunks(queries: Tensor) -> list[slice]:
    num_rows, num_heads, length, _ = queries.shape
    step = max(1, SCORES_AT_ONCE // (num_heads * length * length))
    return [slice(start, start + step) for start in range(0, num_rows, step)]


def _heads_together(x: Tensor, num_kv_heads: int) -> Tensor:
    """(B, H, T, D) -> (B * K, G * T, D): query heads that share keys become one tall matrix."""
    return x.reshape(x.shape[0] * num_kv_heads, -1, x.shape[-1])


def _probabilities(q: Tensor, k: Tensor, bias: Tensor) -> Tensor:
    """q (B * K, G * T, D), k (B * K, T, D), bias (B, 1, T, T) -> softmax rows (B * K, G * T, T)."""
    scores = torch.bmm(q, k.transpose(1, 2)).mul_(q.shape[-1] ** -0.5)
    scores.view(bias.shape[0], -1, *bias.shape[2:]).add_(bias)
    return scores.softmax(-1)
