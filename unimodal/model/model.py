"""The whole model: a trunk, the branches that insert media into its sequence, and the heads that read its features.

    ids ───────────────────────────────────┐
    latents ─▶ branches["latents"] (flow) ─┼─▶ trunk ─▶ features ─┬─▶ heads["tokens"]    next text token or image code
    patches ─▶ branches["patches"] (ViT) ──┘                      ├─▶ heads["velocity"]  of noised latents
                                                                  └─▶ heads["multi_token"]   tokens after the next

A discrete model (Chameleon) has no branches and one head; the graph is the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenizers_vq.media import LATENTS, PATCHES
from unimodal.model.block import PreNormBlock
from unimodal.model.branches.base import NO_MEDIA, Branch, Inserted, MediaBatch
from unimodal.model.branches.flow import FlowBranch
from unimodal.model.branches.vision.branch import VisionBranch
from unimodal.model.cache import KVCache
from unimodal.model.config import INIT_STD, ModelConfig
from unimodal.model.context import Route
from unimodal.model.heads.multi_token import MultiTokenHead
from unimodal.model.linear import BoundaryLinear, init_linear
from unimodal.model.masks import Mask
from unimodal.model.token_head import TokenHead
from unimodal.model.transformer import Transformer

# Shapes: B batch, T tokens, D model width, V vocabulary.

TOKENS, VELOCITY, MULTI_TOKEN = "tokens", "velocity", "multi_token"
"""Heads."""
MULTI_TOKEN_WEIGHTS = f"heads.{MULTI_TOKEN}."
"""What the names of their weights begin with, which no class of transformers has."""


class UnifiedModel(nn.Module):
    """Trunk + branches + heads (the composition of OLMo-core's `MultimodalLM`)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = Transformer(config.trunk, config.vocab_size)
        self.heads = nn.ModuleDict({TOKENS: TokenHead(config.trunk.dim, config.vocab_size)})
        self.branches = nn.ModuleDict()
        if config.flow:
            self.branches[LATENTS] = FlowBranch(config.flow, config.trunk.dim, config.trunk.head_dim)
            self.heads[VELOCITY] = BoundaryLinear(config.trunk.dim, config.flow.latent_dim)
        if config.vision:
            self.branches[PATCHES] = VisionBranch(config.vision, config.trunk.dim)
        if config.multi_token:
            self.heads[MULTI_TOKEN] = MultiTokenHead(config.trunk, config.multi_token)
        self.init_weights()

    def init_weights(self) -> None:
        """All parameters and tables. The first velocity is zero, so that the first flow loss is E|noise - x_0|^2.

        After `to_empty` too, which gives a tied head memory of its own and leaves nothing in the tables.
        """
        self.trunk.init_weights()
        init_linear(self.token_head, INIT_STD)
        if VELOCITY in self.heads:
            for parameter in self.heads[VELOCITY].parameters():
                nn.init.zeros_(parameter)
        if (multi_token := self.multi_token_head) is not None:
            multi_token.init_weights()
        for branch in self.branches.values():
            assert isinstance(branch, Branch)
            branch.init_weights()
        self.tie_head()

    def tie_head(self) -> None:
        """Make the token head share the embedding's weight, where the config says so."""
        if self.config.trunk.tied_head:
            self.token_head.weight = self.trunk.embedding.weight

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        mask: Mask | None = None,
        cache: KVCache | None = None,
        *,
        media: MediaBatch = NO_MEDIA,
        slots: Tensor | None = None,
    ) -> Tensor:
        """tokens (B, T) int64 -> features (B, T, D) after the last norm, which `heads` read.

        positions (B, T) default to 0, 1, ...; mask is bool (B or 1, 1, T, T), True where attention is allowed, or that
        in blocks, and defaults to causal. With a cache, `slots` (B, T) says where it keeps the tokens, which defaults
        to their positions; the mask is (B, 1, T, used slots) and defaults to all slots up to each token's own, and
        `cache.reserve` must have been called for the largest. `media` goes through the branch
        of its name and replaces the embeddings of the ids it stands on. Raises ValueError for media without a branch.
        """
        inserted = self._insert(media)
        route = self._route(inserted, tokens.numel())
        return self.trunk(tokens, positions, mask, cache, inserted=tuple(inserted.values()), route=route, slots=slots)

    def _insert(self, media: MediaBatch) -> dict[str, Inserted]:
        for name in media:
            if name not in self.branches:
                raise ValueError(f"this model has no branch for {name}: it takes {', '.join(['ids', *self.branches])}")
        return {name: self.branches[name](tokens) for name, tokens in media.items()}

    def _route(self, inserted: dict[str, Inserted], num_tokens: int) -> Route | None:
        """Which tokens take the generation expert; None where the trunk has one expert or nothing is generated."""
        generated = [each.index for name, each in inserted.items() if self.branches[name].expert == "generation"]
        if not (self.config.trunk.mixture and generated):
            return None
        return Route.of(generated[0] if len(generated) == 1 else torch.cat(generated).sort().values, num_tokens)

    @property
    def token_head(self) -> TokenHead:
        """Features (..., D) -> logits (..., V), or with targets the scores that a loss reads."""
        return self.heads[TOKENS]  # pyright: ignore[reportReturnType]

    @property
    def multi_token_head(self) -> MultiTokenHead | None:
        """What predicts the tokens after the next one, where the model has that."""
        return dict(self.heads.items()).get(MULTI_TOKEN)  # pyright: ignore[reportReturnType]

    @property
    def blocks(self) -> list[nn.Module]:
        """All decoder layers: those of the trunk, then those of multi-token prediction."""
        head = self.multi_token_head
        depths = [] if head is None else [each for depth in head.depths for each in depth.children()]
        return [*self.trunk.blocks, *(each for each in depths if isinstance(each, PreNormBlock))]

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.trunk.embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return self.trunk.embedding.weight.device
