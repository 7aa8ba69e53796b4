"""One layer of the decoder, in the two orders that Chameleon trains."""

from __future__ import annotations

from torch import Tensor, nn

from unimodal.model.attention import Attention, Rotation
from unimodal.model.cache import KVCache
from unimodal.model.config import TransformerConfig
from unimodal.model.feedforward import FeedForward
from unimodal.model.flow import LatentTokens
from unimodal.model.masks import Mask


class PreNormBlock(nn.Module):
    """Llama's order, Chameleon 7B: x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.attention = Attention(config, layer)
        self.feed_forward = FeedForward(config.dim, config.hidden_dim)
        self.attention_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.feed_forward_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        rotation: Rotation,
        bias: Mask,
        cache: KVCache | None,
        slots: Tensor,
        media: LatentTokens | None = None,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D). A dense block treats latents as it does tokens."""
        del media
        x = x + self.dropout(self.attention(self.attention_norm(x), rotation, bias, cache, slots))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class SwinNormBlock(PreNormBlock):
    """Norms after each part, Chameleon 34B (arXiv 2405.09818, section 2.3): bounds what a layer can add to x."""

    def forward(
        self,
        x: Tensor,
        rotation: Rotation,
        bias: Mask,
        cache: KVCache | None,
        slots: Tensor,
        media: LatentTokens | None = None,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D). A dense block treats latents as it does tokens."""
        del media
        x = x + self.dropout(self.attention_norm(self.attention(x, rotation, bias, cache, slots)))
        return x + self.dropout(self.feed_forward_norm(self.feed_forward(x)))


class LastNorm(nn.RMSNorm):
    """The norm before the head, of tokens and latents alike."""

    def forward(self, x: Tensor, media: LatentTokens | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        del media
        return super().forward(x)


BLOCKS: dict[str, type[PreNormBlock]] = {"pre": PreNormBlock, "swin": SwinNormBlock}


def run_block(
    block: nn.Module,
    x: Tensor,
    rotation: Rotation,
    bias: Mask,
    cache: KVCache | None,
    slots: Tensor,
    media: LatentTokens | None,
) -> Tensor:
    """One block, (B, T, D) -> (B, T, D): what is compiled for training, once for all blocks."""
    return block(x, rotation, bias, cache, slots, media)
