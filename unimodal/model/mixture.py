"""Mixture-of-transformers: two sets of weights in every layer, one attention over the joint sequence.

Text and codes take the understanding weights, latents the generation weights; the data decides, nothing is learnt
(BAGEL, arXiv 2505.14683, section 2.2; MoT, arXiv 2411.04996). A block copied to both sides is the dense block again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unimodal.model.attention import Rotation, look
from unimodal.model.block import PreNormBlock
from unimodal.model.cache import KVCache
from unimodal.model.config import TransformerConfig
from unimodal.model.flow import LatentTokens
from unimodal.model.masks import Mask
from unimodal.model.rope import rotate

# Shapes: B batch, T tokens, D model width, M latent tokens, N = B * T - M others, H and K heads, W head width.

UNDERSTANDING, GENERATION = "understanding", "generation"

Parts = tuple[Tensor, Tensor]
"""(N, ...) of the others and (M, ...) of the latents."""


class Permuted(torch.autograd.Function):
    """x[order], whose gradient is gathered by the inverse.

    Plain indexing scatters its gradient and adds, which for bfloat16 on CPUs is slow and does not share the work among
    threads; a permutation has nothing to add.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x[order]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return grads[0][inverse], None, None


def split(x: Tensor, media: LatentTokens) -> Parts:
    """(B, T, ...) -> parts."""
    parted: Tensor = Permuted.apply(x.flatten(0, 1), media.parted, media.order)  # pyright: ignore[reportAssignmentType]
    count = len(media.parted) - len(media.index)
    return parted[:count], parted[count:]


def merge(parts: Parts, media: LatentTokens, shape: torch.Size) -> Tensor:
    """The inverse of `split`; shape is (B, T)."""
    others, latents = parts
    joined = torch.cat([others, latents.to(others.dtype)])
    back: Tensor = Permuted.apply(joined, media.order, media.parted)  # pyright: ignore[reportAssignmentType]
    return back.unflatten(0, shape)


class MixtureBlock(nn.Module):
    """Two pre-norm blocks that look at each other's tokens."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.understanding = PreNormBlock(config, layer)
        self.generation = PreNormBlock(config, layer)

    def forward(
        self,
        x: Tensor,
        rotation: Rotation,
        bias: Mask,
        cache: KVCache | None,
        slots: Tensor,
        media: LatentTokens | None = None,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D). Without latents this is the understanding block alone."""
        if media is None:
            return self.understanding(x, rotation, bias, cache, slots)
        shape = x.shape[:2]
        sides = (self.understanding, self.generation)
        parts = split(x, media)
        heads = [side.attention.heads(side.attention_norm(part)) for side, part in zip(sides, parts, strict=True)]
        queries, keys, values = (merge(pair, media, shape) for pair in zip(*heads, strict=True))
        seen = look(rotate(queries, *rotation), rotate(keys, *rotation), values, bias, cache, self.layer, slots)
        done = [
            _finished(side, part, mixed) for side, part, mixed in zip(sides, parts, split(seen, media), strict=True)
        ]
        return merge((done[0], done[1]), media, shape)


def _finished(side: PreNormBlock, x: Tensor, seen: Tensor) -> Tensor:
    """What follows the attention, for the tokens of one side: (N, D), (N, H * W) -> (N, D)."""
    x = x + side.dropout(side.attention.o_proj(seen))
    return x + side.dropout(side.feed_forward(side.feed_forward_norm(x)))


class MixtureNorm(nn.Module):
    """The last norm, one for each side."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.understanding = nn.RMSNorm(dim, eps=eps)
        self.generation = nn.RMSNorm(dim, eps=eps)

    def forward(self, x: Tensor, media: LatentTokens | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        if media is None:
            return self.understanding(x)
        others, latents = split(x, media)
        return merge((self.understanding(others), self.generation(latents)), media, x.shape[:2])


def side_names(name: str) -> tuple[str, str] | None:
    """A dense model's parameter -> its names in a mixture's two sides; None for what both share."""
    head, _, rest = name.partition(".")
    if head == "norm":
        return f"norm.{UNDERSTANDING}.{rest}", f"norm.{GENERATION}.{rest}"
    if head == "blocks":
        layer, _, rest = rest.partition(".")
        return f"blocks.{layer}.{UNDERSTANDING}.{rest}", f"blocks.{layer}.{GENERATION}.{rest}"
    return None


def from_dense(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A dense model's parameters -> those of a mixture that computes the same function whatever is a latent."""
    copied: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for own in side_names(name) or (name,):
            copied[own] = tensor.clone()
    return copied


def is_understanding(name: str) -> bool:
    """Whether a parameter belongs to understanding: its side of the layers, embedding, head and ViT."""
    return f".{UNDERSTANDING}." in name or name.startswith(("embedding.", "head.", "vision."))


def freeze(model: nn.Module, chosen: Callable[[str], bool]) -> None:
    """Chosen parameters take no gradient any more."""
    for name, parameter in model.named_parameters():
        if chosen(name):
            parameter.requires_grad_(False)
