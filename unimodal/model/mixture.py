"""Mixture-of-transformers: two experts in every layer, one attention over the joint sequence.

Text and codes take the understanding expert, latents the generation expert; the data decides, nothing is learnt
(BAGEL, arXiv 2505.14683, section 2.2; MoT, arXiv 2411.04996). Initialised from a dense model, a mixture computes the
same function, whichever tokens are latents.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from unimodal.model.attention import attend_cached
from unimodal.model.block import PreNormBlock
from unimodal.model.config import TransformerConfig
from unimodal.model.context import LayerContext, Route
from unimodal.model.permuted import Permuted
from unimodal.model.rope import rotate

# Shapes: B batch, T tokens, D model width, M tokens of generation, N = B * T - M others, H and K heads, W head width.

UNDERSTANDING, GENERATION = "understanding", "generation"

Parts = tuple[Tensor, Tensor]
"""(N, ...) of the understanding expert and (M, ...) of the generation expert."""


def split_by_expert(x: Tensor, route: Route) -> Parts:
    """(B, T, ...) -> parts."""
    ordered: Tensor = Permuted.apply(x.flatten(0, 1), route.order, route.inverse)  # pyright: ignore[reportAssignmentType]
    return ordered[: route.num_understanding], ordered[route.num_understanding :]


def merge_experts(parts: Parts, route: Route, shape: torch.Size) -> Tensor:
    """The inverse of `split_by_expert`; shape is (B, T)."""
    understanding, generation = parts
    joined = torch.cat([understanding, generation.to(understanding.dtype)])
    back: Tensor = Permuted.apply(joined, route.inverse, route.order)  # pyright: ignore[reportAssignmentType]
    return back.unflatten(0, shape)


class MixtureBlock(nn.Module):
    """Two pre-norm blocks whose tokens attend to each other."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.understanding = PreNormBlock(config)
        self.generation = PreNormBlock(config)

    def init_weights(self) -> None:
        """All parameters of both experts."""
        self.understanding.init_weights()
        self.generation.init_weights()

    def forward(self, x: Tensor, context: LayerContext) -> Tensor:
        """(B, T, D) -> (B, T, D). Without a route this is the understanding block alone."""
        route = context.route
        if route is None:
            return self.understanding(x, context)
        shape, experts = x.shape[:2], (self.understanding, self.generation)
        parts = split_by_expert(x, route)
        heads = [expert.attention.qkv(expert.attention_norm(part)) for expert, part in zip(experts, parts, strict=True)]
        queries, keys, values = (merge_experts(pair, route, shape) for pair in zip(*heads, strict=True))
        rotated = (rotate(queries, *context.rotation), rotate(keys, *context.rotation))
        mixed = split_by_expert(attend_cached(*rotated, values, context), route)
        understood, generated = map(_after_attention, experts, parts, mixed)
        return merge_experts((understood, generated), route, shape)


def _after_attention(expert: PreNormBlock, x: Tensor, mixed: Tensor) -> Tensor:
    """The rest of a block for one expert's tokens: (N, D), (N, H * W) -> (N, D)."""
    x = x + expert.dropout(expert.attention.o_proj(mixed))
    return x + expert.dropout(expert.feed_forward(expert.feed_forward_norm(x)))


class MixtureNorm(nn.Module):
    """The norm before the heads, one for each expert."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.understanding = nn.RMSNorm(dim, eps=eps)
        self.generation = nn.RMSNorm(dim, eps=eps)

    def reset_parameters(self) -> None:
        """Weights of 1."""
        self.understanding.reset_parameters()
        self.generation.reset_parameters()

    def forward(self, x: Tensor, route: Route | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        if route is None:
            return self.understanding(x)
        understanding, generation = split_by_expert(x, route)
        return merge_experts((self.understanding(understanding), self.generation(generation)), route, x.shape[:2])


def expert_names(name: str) -> tuple[str, str] | None:
    """A dense model's parameter -> its names in a mixture's two experts; None for what both share."""
    if name.startswith("trunk.norm."):
        rest = name.removeprefix("trunk.norm.")
        return f"trunk.norm.{UNDERSTANDING}.{rest}", f"trunk.norm.{GENERATION}.{rest}"
    if name.startswith("trunk.blocks."):
        layer, _, rest = name.removeprefix("trunk.blocks.").partition(".")
        return f"trunk.blocks.{layer}.{UNDERSTANDING}.{rest}", f"trunk.blocks.{layer}.{GENERATION}.{rest}"
    return None


def from_dense(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A dense model's parameters -> a mixture's that computes the same function, whichever tokens are latents."""
    copied: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for expert_name in expert_names(name) or (name,):
            copied[expert_name] = tensor.clone()
    return copied


def is_understanding(name: str) -> bool:
    """Whether a parameter belongs to understanding: its expert, embedding, token head and ViT."""
    shared = ("trunk.embedding.", "heads.tokens.", "branches.patches.")
    return f".{UNDERSTANDING}." in name or name.startswith(shared)
