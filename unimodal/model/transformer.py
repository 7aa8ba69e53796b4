"""The decoder: one sequence of text tokens and image codes in, the next token of either kind out.

Chameleon (arXiv 2405.09818) in one picture:

    ids ─▶ embedding ─▶ [ RMSNorm ─▶ attention (QK-norm, RoPE) ─▶ +  RMSNorm ─▶ SwiGLU ─▶ + ] x L ─▶ RMSNorm ─▶ head

Image codes and text tokens share the embedding, every layer and the head; nothing here knows which is which.
With the flow branch (flow.py), latents of images enter beside the embedding, and a mixture (mixture.py) gives them
weights of their own in every layer. With a ViT (vision.py), so does what it saw of a picture.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from unimodal.model.block import BLOCKS, LastNorm, run_block
from unimodal.model.cache import KVCache
from unimodal.model.config import TransformerConfig
from unimodal.model.flow import FlowBranch, LatentTokens
from unimodal.model.masks import Mask, as_bias, cached_mask, causal_mask
from unimodal.model.mixture import MixtureBlock, MixtureNorm
from unimodal.model.rope import RotaryEmbedding
from unimodal.model.vision import Seen, VisionTower

# Shapes: B batch, T tokens, D model width, V vocabulary.

INIT_STD = 0.02


class Transformer(nn.Module):
    """A decoder-only transformer over one vocabulary of text and image tokens."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.rotary = RotaryEmbedding(config.head_dim, config.rope_theta)
        block = MixtureBlock if config.mixture else BLOCKS[config.norm_placement]
        self.blocks = nn.ModuleList(block(config, layer) for layer in range(config.num_layers))
        self.norm = (MixtureNorm if config.mixture else LastNorm)(config.dim, eps=config.norm_eps)
        self.head = nn.Linear(config.dim, config.vocab_size, bias=False)
        self.flow = FlowBranch(config.flow, config.dim, config.head_dim) if config.flow else None
        self.vision = VisionTower(config.vision, config.dim) if config.vision else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal(0, 0.02), and projections back into the residual stream smaller by sqrt(2 x layers) (GPT-2)."""
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2 or "_norm." in name:
                continue
            into_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            std = INIT_STD / (2 * self.config.num_layers) ** 0.5 if into_residual else INIT_STD
            nn.init.normal_(parameter, std=std)
        if self.flow is not None:
            self.flow.reset_parameters()
        if self.vision is not None:
            self.vision.reset_biases()

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        mask: Mask | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """tokens (B, T) int64 -> logits (B, T, V).

        positions (B, T) default to 0, 1, ...; mask is bool (B or 1, 1, T, T), True where attention is allowed, or
        that in blocks, and defaults to causal. With a cache, attention runs over all slots up to each token's own
        position, and `cache.reserve` must have been called for the largest position.
        """
        return self.head(self.features(tokens, positions, mask, cache))

    def features(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        mask: Mask | None = None,
        cache: KVCache | None = None,
        *,
        media: LatentTokens | None = None,
        seen: Seen | None = None,
        slots: Tensor | None = None,
        run: Callable[..., Tensor] = run_block,
    ) -> Tensor:
        """As `forward`, but what the head reads: (B, T, D) after the last norm.

        Where `media` says that latents stand, and `seen` what the ViT saw, these take the place of token ids. Where
        tokens share positions, `slots` (B, T) says where a cache keeps them, and the mask (B, 1, T, used slots) comes
        with it. `run` runs a block: a compiled `run_block` is compiled once, since all blocks are alike.
        """
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        if slots is None:
            slots = positions
            if cache is not None:
                mask = cached_mask(positions, cache.used)
        if mask is None:
            mask = causal_mask(tokens.shape[1], tokens.device)
        x = self.embedding(tokens)
        if seen is not None:
            x = x.flatten(0, 1).index_copy(0, seen.index, seen.features.to(x.dtype)).view(x.shape)
        dtype = _compute_dtype(x)
        turns = None if media is None else self._branch().turns(media, positions.shape)
        rotation, bias = self.rotary(positions, dtype, turns), as_bias(mask, dtype)
        if media is not None:
            latents = self._branch().embed(media).to(x.dtype)
            x = x.flatten(0, 1).index_copy(0, media.index, latents).view(x.shape)
        for block in self.blocks:
            x = run(block, x, rotation, bias, cache, slots, media)
        return self.norm(x) if media is None else self.norm(x, media)

    def _branch(self) -> FlowBranch:
        if self.flow is None:
            raise ValueError("this model has no flow branch: it takes token ids and no latents")
        return self.flow

    def num_parameters(self, *, without_embedding: bool = True) -> int:
        """Parameters that take part in matrix products; the embedding table is a look-up."""
        total = sum(parameter.numel() for parameter in self.parameters())
        return total - self.embedding.weight.numel() if without_embedding else total

    def flops_per_token(self, length: int) -> float:
        """Floating-point operations of forward and backward for one token of a row of `length` tokens.

        6 per parameter plus 12 x layers x width x length for attention, counted without the causal half
        (PaLM, arXiv 2204.02311, appendix B).
        """
        attention = 12 * self.config.num_layers * self.config.dim * length
        return 6 * self.num_parameters() + attention


def _compute_dtype(x: Tensor) -> torch.dtype:
    """What matrix products will produce: the autocast dtype where autocast is on."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
