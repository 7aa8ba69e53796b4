"""Attention: the one place where tokens look at each other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimodal.model.cache import KVCache
from unimodal.model.config import TransformerConfig
from unimodal.model.kernels import attend
from unimodal.model.masks import Mask
from unimodal.model.rope import rotate

# Shapes: B batch, T tokens, D model width, H query heads, K key/value heads, W head width.

Rotation = tuple[Tensor, Tensor]


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

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, heads, W) -> the same shape, in the dtype that came in."""
        normed = F.layer_norm(x, x.shape[-1:], eps=self.eps).to(x.dtype)
        return torch.addcmul(self.bias.to(x.dtype), normed, self.weight.to(x.dtype))


class HeadRMSNorm(nn.RMSNorm):
    """RMSNorm over each head's width with one weight for all heads (Qwen3, BAGEL)."""

    def __init__(self, num_heads: int, head_dim: int, eps: float) -> None:
        del num_heads
        super().__init__(head_dim, eps=eps)


HEAD_NORMS: dict[str, type[HeadLayerNorm | HeadRMSNorm]] = {"layer": HeadLayerNorm, "rms": HeadRMSNorm}


class Attention(nn.Module):
    """Grouped-query attention with QK-norm and rotary positions."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        kv_dim = config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.dim, config.dim, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.dim, kv_dim, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.dim, kv_dim, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.dim, config.dim, bias=False)
        self.q_norm = _head_norm(config, config.num_heads)
        self.k_norm = _head_norm(config, config.num_kv_heads)

    def forward(self, x: Tensor, rotation: Rotation, bias: Mask, cache: KVCache | None, slots: Tensor) -> Tensor:
        """x (B, T, D), bias (B or 1, 1, T, keys) -> (B, T, D). With a cache, keys are all used slots."""
        return self.o_proj(look(*self.project(x, rotation), bias, cache, self.layer, slots))

    def project(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, D) -> queries (B, T, H, W) and keys (B, T, K, W), normed and rotated, and values (B, T, K, W)."""
        queries, keys, values = self.heads(x)
        return rotate(queries, *rotation), rotate(keys, *rotation), values

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `project`, (..., D) -> (..., H or K, W), before the rotation."""
        queries = self.q_norm(self._heads(self.q_proj(x)))
        keys = self.k_norm(self._heads(self.k_proj(x)))
        return queries, keys, self._heads(self.v_proj(x))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim))


def _head_norm(config: TransformerConfig, num_heads: int) -> nn.Module:
    if config.qk_norm is None:
        return nn.Identity()
    return HEAD_NORMS[config.qk_norm.kind](num_heads, config.head_dim, config.qk_norm.eps)


def look(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Mask, cache: KVCache | None, layer: int, slots: Tensor
) -> Tensor:
    """queries (B, T, H, W), keys and values (B, T, K, W), slots (B, T) of a cache -> what is seen (B, T, H * W)."""
    if cache is None:
        keys, values = keys.transpose(1, 2), values.transpose(1, 2)
    else:
        keys, values = cache.update(layer, keys, values, slots)
    mixed = attend(queries.transpose(1, 2), keys.to(queries.dtype), values.to(queries.dtype), bias)
    return mixed.transpose(1, 2).flatten(2)
