"""Attention: the one place where tokens attend to each other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimodal.model.config import INIT_STD, TransformerConfig
from unimodal.model.context import LayerContext, Rotation
from unimodal.model.kernels import attend
from unimodal.model.linear import init_linear
from unimodal.model.rope import rotate

# Shapes: B batch, T tokens, D model width, H query heads, K key/value heads, W head width.

QueriesKeysValues = tuple[Tensor, Tensor, Tensor]
"""(..., H, W), (..., K, W) and (..., K, W)."""


class HeadLayerNorm(nn.Module):
    """LayerNorm over each head's width, with a weight and a bias for every head.

    Chameleon's QK-norm: LayerNorm with bias rather than RMSNorm, before the rotary rotation, and own parameters for
    each head (arXiv 2405.09818, section 2.3, and its public inference code).
    """

    def __init__(self, num_heads: int, head_dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_heads, head_dim))
        self.bias = nn.Parameter(torch.zeros(num_heads, head_dim))
        self.eps = eps

    def reset_parameters(self) -> None:
        """Weight 1 and bias 0."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, heads, W) -> the same shape, in the dtype that came in."""
        normed = F.layer_norm(x, x.shape[-1:], eps=self.eps).to(x.dtype)
        return torch.addcmul(self.bias.to(x.dtype), normed, self.weight.to(x.dtype))


class HeadRMSNorm(nn.RMSNorm):
    """RMSNorm over each head's width with one weight for all heads (Qwen3, BAGEL)."""

    def __init__(self, num_heads: int, head_dim: int, eps: float) -> None:
        del num_heads
        super().__init__(head_dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, heads, W) -> the same shape, in the dtype that came in: autocast computes the norm in float32."""
        return super().forward(x).to(x.dtype)


HEAD_NORMS: dict[str, type[HeadLayerNorm | HeadRMSNorm]] = {"layer": HeadLayerNorm, "rms": HeadRMSNorm}


class QKVProjection(nn.Module):
    """Queries, keys and values of each head, queries and keys normed (QK-norm)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        q_dim, kv_dim = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.dim, q_dim, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.dim, kv_dim, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.dim, kv_dim, bias=config.qkv_bias)
        self.q_norm = _head_norm(config, config.num_heads)
        self.k_norm = _head_norm(config, config.num_kv_heads)

    def init_weights(self) -> None:
        """Normal matrices, zero biases, norms of weight 1."""
        for linear in (self.q_proj, self.k_proj, self.v_proj):
            init_linear(linear, INIT_STD)
        for norm in (self.q_norm, self.k_norm):
            if isinstance(norm, HeadLayerNorm | HeadRMSNorm):
                norm.reset_parameters()

    def forward(self, x: Tensor, rotation: Rotation | None = None) -> QueriesKeysValues:
        """x (..., D) -> queries (..., H, W), keys and values (..., K, W); queries and keys rotated if asked."""
        queries = self.q_norm(self._heads(self.q_proj(x)))
        keys = self.k_norm(self._heads(self.k_proj(x)))
        values = self._heads(self.v_proj(x))
        if rotation is None:
            return queries, keys, values
        return rotate(queries, *rotation), rotate(keys, *rotation), values

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim))


def _head_norm(config: TransformerConfig, num_heads: int) -> nn.Module:
    if config.qk_norm is None:
        return nn.Identity()
    return HEAD_NORMS[config.qk_norm.kind](num_heads, config.head_dim, config.qk_norm.eps)


class Attention(nn.Module):
    """Grouped-query attention with QK-norm and rotary positions."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.residual_std = config.residual_std
        self.qkv = QKVProjection(config)
        self.o_proj = nn.Linear(config.num_heads * config.head_dim, config.dim, bias=False)

    def init_weights(self) -> None:
        """The output projection starts smaller the deeper the model is."""
        self.qkv.init_weights()
        init_linear(self.o_proj, self.residual_std)

    def forward(self, x: Tensor, context: LayerContext) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        queries, keys, values = self.qkv(x, context.rotation)
        return self.o_proj(attend_cached(queries, keys, values, context))


def attend_cached(queries: Tensor, keys: Tensor, values: Tensor, context: LayerContext) -> Tensor:
    """queries (B, T, H, W), keys and values (B, T, K, W) -> (B, T, H * W).

    With a cache, keys and values are written to the layer's slots first, and attention runs over all used slots.
    """
    if context.cache is None:
        keys, values = keys.transpose(1, 2), values.transpose(1, 2)
    else:
        keys, values = context.cache.update(keys, values, context.slots)
    mixed = attend(queries.transpose(1, 2), keys.to(queries.dtype), values.to(queries.dtype), context.bias)
    return mixed.transpose(1, 2).flatten(2)
