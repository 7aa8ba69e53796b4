"""Multi-token prediction: from the features of a token the tokens after the next one.

    sequential   h'  = M [norm(h) ; norm(embedding of the next token)],  h = block(h')     DeepSeek-V3, 2412.19437, 2.2
    parallel     h   = block(features)                                                     Gloeckle, 2404.19737
    medusa       h   = features + SiLU(W features)                                         MEDUSA, 2401.10774, 2.1.1

All depths share the model's embedding and token head. Depth 1 predicts the second token from here, depth 2 the third.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimodal.model.block import BLOCKS
from unimodal.model.cache import KVCache
from unimodal.model.config import INIT_STD, MultiTokenConfig, TransformerConfig
from unimodal.model.context import LayerContext
from unimodal.model.linear import init_linear
from unimodal.model.masks import Mask, as_bias, cached_mask, causal_mask
from unimodal.model.rope import RotaryEmbedding
from unimodal.model.transformer import compute_dtype

# Shapes: B batch, T tokens, D model width, K depths.


class Depth(nn.Module):
    """One depth: what the one before left (of depth 0, the features), features and embeddings -> hidden, output."""

    def forward(self, hidden: Tensor, features: Tensor, embedded: Tensor, context: LayerContext) -> tuple[Tensor, ...]:
        """(B, T, D) each -> what the next depth takes, and what the token head reads."""
        raise NotImplementedError

    def init_weights(self) -> None:
        """All parameters."""
        raise NotImplementedError


class SequentialDepth(Depth):
    """Reads the embedding of the token that the depth before predicts."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.hidden_norm, self.embedding_norm, self.norm = (nn.RMSNorm(config.dim, eps=config.norm_eps) for _ in "123")
        self.projection = nn.Linear(2 * config.dim, config.dim, bias=False)
        self.block = BLOCKS[config.norm_placement](config)

    def init_weights(self) -> None:
        """See `Depth`."""
        for norm in (self.hidden_norm, self.embedding_norm, self.norm):
            norm.reset_parameters()
        init_linear(self.projection, INIT_STD)
        self.block.init_weights()

    def forward(self, hidden: Tensor, features: Tensor, embedded: Tensor, context: LayerContext) -> tuple[Tensor, ...]:
        """See `Depth`."""
        both = torch.cat([self.hidden_norm(hidden), self.embedding_norm(embedded)], -1)
        hidden = self.block(self.projection(both), context)
        return hidden, self.norm(hidden)


class ParallelDepth(Depth):
    """A layer of its own over the features."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.block = BLOCKS[config.norm_placement](config)
        self.norm = nn.RMSNorm(config.dim, eps=config.norm_eps)

    def init_weights(self) -> None:
        """See `Depth`."""
        self.block.init_weights()
        self.norm.reset_parameters()

    def forward(self, hidden: Tensor, features: Tensor, embedded: Tensor, context: LayerContext) -> tuple[Tensor, ...]:
        """See `Depth`."""
        del embedded
        return hidden, self.norm(self.block(features, context))


class MedusaDepth(Depth):
    """A residual layer that starts as the identity, and attends to nothing."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.dim, config.dim)

    def init_weights(self) -> None:
        """See `Depth`."""
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor, features: Tensor, embedded: Tensor, context: LayerContext) -> tuple[Tensor, ...]:
        """See `Depth`."""
        del embedded, context
        return hidden, features + F.silu(self.linear(features))


DEPTHS: dict[str, type[Depth]] = {"sequential": SequentialDepth, "parallel": ParallelDepth, "medusa": MedusaDepth}


class MultiTokenHead(nn.Module):
    """All depths of a model."""

    def __init__(self, trunk: TransformerConfig, config: MultiTokenConfig) -> None:
        super().__init__()
        trunk = replace(trunk, moe=None)  # its blocks are dense
        self.depths = nn.ModuleList(DEPTHS[config.kind](trunk) for _ in range(config.depth))
        self.rotary = RotaryEmbedding(trunk.head_dim, trunk.rope)
        self.first_layer, self.has_blocks = trunk.num_layers, config.has_blocks

    def init_weights(self) -> None:
        """All parameters."""
        for depth in self.depths:
            depth.init_weights()  # pyright: ignore[reportCallIssue]

    def forward(
        self,
        features: Tensor,
        embedded: Sequence[Tensor] = (),
        positions: Tensor | None = None,
        mask: Mask | None = None,
    ) -> Tensor:
        """Features (B, T, D) after the trunk's norm -> (K, B, T, D), which the token head reads.

        embedded[k] (B, T, D) are the embeddings of the token k + 1 places on; nothing is known of them by default.
        """
        batch, length, _ = features.shape
        if positions is None:
            positions = torch.arange(length, device=features.device).expand(batch, length)
        mask = causal_mask(length, features.device) if mask is None else mask
        rotation = self.rotary(positions, compute_dtype(features))
        context = LayerContext(rotation, as_bias(mask, compute_dtype(features)), None, positions)
        hidden, found = features, list[Tensor]()
        for number, depth in enumerate(self.depths):
            known = embedded[number] if number < len(embedded) else torch.zeros_like(features)
            hidden, out = depth(hidden, features, known, context)
            found.append(out)
        return torch.stack(found)

    def cached(self, features: Tensor, positions: Tensor, slots: Tensor, cache: KVCache) -> LayerContext:
        """What the depths are given while decoding; depth k keeps its keys behind the trunk's layers: `at_depth`."""
        dtype = compute_dtype(features)
        bias = as_bias(cached_mask(slots, cache.used), dtype)
        return LayerContext(self.rotary(positions, dtype), bias, None, slots)

    def at_depth(self, context: LayerContext, depth: int, cache: KVCache) -> LayerContext:
        """The context of one depth."""
        return context._replace(cache=cache.of_layer(self.first_layer + depth))
