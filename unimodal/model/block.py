"""One layer of the decoder, in the two orders that Chameleon trains."""

from __future__ import annotations

from torch import Tensor, nn

from unimodal.model.attention import Attention
from unimodal.model.config import TransformerConfig
from unimodal.model.context import LayerContext, Route
from unimodal.model.feedforward.dense import FeedForward
from unimodal.model.feedforward.moe import MixtureOfExperts

# Shapes: B batch, T tokens, D model width.


class PreNormBlock(nn.Module):
    """Llama's order, Chameleon 7B: x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = MixtureOfExperts(config) if config.moe else FeedForward(config)
        self.attention_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.feed_forward_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def init_weights(self) -> None:
        """All parameters of the layer."""
        self.attention.init_weights()
        self.feed_forward.init_weights()
        self.attention_norm.reset_parameters()
        self.feed_forward_norm.reset_parameters()

    def forward(self, x: Tensor, context: LayerContext) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = x + self.dropout(self.attention(self.attention_norm(x), context))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x), context.kinds))


class SwinNormBlock(PreNormBlock):
    """Norms after each part, Chameleon 34B (arXiv 2405.09818, section 2.3): bounds what a layer can add to x."""

    def forward(self, x: Tensor, context: LayerContext) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = x + self.dropout(self.attention_norm(self.attention(x, context)))
        return x + self.dropout(self.feed_forward_norm(self.feed_forward(x, context.kinds)))


class FinalNorm(nn.RMSNorm):
    """The norm before the heads; all tokens share it."""

    def forward(self, x: Tensor, route: Route | None = None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(B, T, D) -> (B, T, D)."""
        del route
        return super().forward(x)


BLOCKS: dict[str, type[PreNormBlock]] = {"pre": PreNormBlock, "swin": SwinNormBlock}
