"""What the layers of one forward pass share, and which of a mixture's weights each token takes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from unimodal.model.cache import LayerSlots
from unimodal.model.masks import Mask

# Shapes: B batch, T tokens, M tokens of the generation expert, W head width.

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines (B, T, 1, W/2)."""


class Route(NamedTuple):
    """The tokens of a batch sorted by expert: first those of understanding, then those of generation."""

    order: Tensor
    """(B * T,) int64: the sorted tokens' indices into the flattened batch."""
    inverse: Tensor
    """(B * T,) int64: where each token stands in `order`."""
    generation: Tensor
    """(M,) int64: the tokens of the generation expert, in the order of the batch."""

    @classmethod
    def of(cls, generation: Tensor, num_tokens: int) -> Route:
        """The route of a batch of B * T tokens; `generation` (M,) is sorted."""
        chosen = torch.zeros(num_tokens, dtype=torch.int64, device=generation.device).index_fill(0, generation, 1)
        order = chosen.argsort(stable=True)
        return cls(order, order.argsort(), generation)

    @property
    def num_understanding(self) -> int:
        """How many tokens the understanding expert takes."""
        return len(self.order) - len(self.generation)


class LayerContext(NamedTuple):
    """What every layer of a forward pass is given beside its input.

    `bias` is added to attention scores, or allows them in blocks. `cache`, each layer's part of it, and the `slots`
    (B, T) of its tokens are for decoding. Without a `route` all tokens take the understanding expert of a mixture.
    `kinds` (B, T) int64 are the modalities by which a mixture of experts is balanced.
    """

    rotation: Rotation
    bias: Mask
    cache: LayerSlots | None
    slots: Tensor
    route: Route | None = None
    kinds: Tensor | None = None
