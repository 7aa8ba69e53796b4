"""The trunk: one sequence of text tokens, image codes and inserted embeddings in, features out.

Chameleon (arXiv 2405.09818) in one picture:

    ids ─▶ embedding ─▶ [ RMSNorm ─▶ attention (QK-norm, RoPE) ─▶ +  RMSNorm ─▶ SwiGLU ─▶ + ] x L ─▶ RMSNorm

Image codes and text tokens share the embedding and every layer; nothing here knows which is which. Branches
(branches/) insert embeddings instead of ids, and a mixture (mixture.py) gives some tokens weights of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unimodal.model.block import BLOCKS, FinalNorm
from unimodal.model.branches.base import Inserted
from unimodal.model.cache import KVCache
from unimodal.model.config import INIT_STD, TransformerConfig
from unimodal.model.context import LayerContext, Route
from unimodal.model.feedforward.config import MoEConfig
from unimodal.model.masks import Mask, as_bias, cached_mask, causal_mask
from unimodal.model.mixture import MixtureBlock, MixtureNorm
from unimodal.model.rope import RotaryEmbedding

# Shapes: B batch, T tokens, D model width, W head width.


class Transformer(nn.Module):
    """A decoder-only transformer without heads."""

    def __init__(self, config: TransformerConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(vocab_size, config.dim)
        self.rotary = RotaryEmbedding(config.head_dim, config.rope)
        block = MixtureBlock if config.mixture else BLOCKS[config.norm_placement]
        self.blocks = nn.ModuleList(block(config.of_layer(layer)) for layer in range(config.num_layers))
        self.norm = (MixtureNorm if config.mixture else FinalNorm)(config.dim, eps=config.norm_eps)

    def init_weights(self) -> None:
        """All parameters: matrices normal with std 0.02, smaller where they lead back into the residual stream."""
        nn.init.normal_(self.embedding.weight, std=INIT_STD)
        for block in self.blocks:
            block.init_weights()  # pyright: ignore[reportCallIssue]
        self.norm.reset_parameters()

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        mask: Mask | None = None,
        cache: KVCache | None = None,
        *,
        inserted: Sequence[Inserted] = (),
        route: Route | None = None,
        slots: Tensor | None = None,
    ) -> Tensor:
        """tokens (B, T) int64 -> features (B, T, D) after the last norm; see `UnifiedModel.forward`.

        `inserted` embeddings replace those of token ids; `route` says which expert of a mixture each token takes.
        """
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        slots = positions if slots is None else slots
        if mask is None:
            mask = causal_mask(tokens.shape[1], tokens.device) if cache is None else cached_mask(slots, cache.used)
        x = self.embedding(tokens)
        for each in inserted:
            x = x.flatten(0, 1).index_copy(0, each.index, each.embeddings.to(x.dtype)).view(x.shape)
        dtype = compute_dtype(x)
        rotation = self.rotary(positions, dtype, _angles(inserted, tokens.shape))
        kinds = token_kinds(tokens, inserted, self.config.moe) if self.config.moe else None
        context = LayerContext(rotation, as_bias(mask, dtype), None, slots, route, kinds)
        for layer, block in enumerate(self.blocks):
            x = block(x, context if cache is None else context._replace(cache=cache.of_layer(layer)))
        return self.norm(x, route)


def token_kinds(tokens: Tensor, inserted: Sequence[Inserted], config: MoEConfig) -> Tensor:
    """Ids (B, T) -> their modalities (B, T), numbers of KINDS: image codes and inserted embeddings are images."""
    is_image = (tokens >= config.image_ids_from).flatten() if config.image_ids_from else tokens.flatten() < 0
    for each in inserted:
        is_image = is_image.index_fill(0, each.index, True)
    return is_image.long().view(tokens.shape)


def _angles(inserted: Sequence[Inserted], shape: torch.Size) -> Tensor | None:
    """(B, T, W/2) to be added to the rotary angles; None where no branch has any."""
    angles: Tensor | None = None
    for each in inserted:
        if each.angles is not None:
            angles = each.angles.new_zeros(shape.numel(), each.angles.shape[-1]) if angles is None else angles
            angles = angles.index_copy(0, each.index, each.angles)
    return None if angles is None else angles.unflatten(0, shape)


def compute_dtype(x: Tensor) -> torch.dtype:
    """What matrix products will produce: the autocast dtype where autocast is on."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
