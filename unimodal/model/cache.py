"""The key/value cache: what attention has already computed for each row of a batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from unimodal.model.config import TransformerConfig

# Shapes: B rows, T new tokens, K key/value heads, S cache slots, D head width.


class LayerCache(NamedTuple):
    """Keys and values (B, K, S, D) of one layer; slot j holds position j of its row."""

    keys: Tensor
    values: Tensor


class KVCache:
    """Preallocated keys and values for all layers. Rows may have different lengths.

    A token is written to the slot of its position, so right padding of a ragged prompt is simply overwritten by
    what the row decodes next.
    """

    def __init__(
        self, config: TransformerConfig, rows: int, slots: int, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        shape = (rows, config.num_kv_heads, slots, config.head_dim)
        self.layers = [
            LayerCache(torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device))
            for _ in range(config.num_layers)
        ]
        self.slots = slots
        self.used = 0

    def reserve(self, length: int) -> None:
        """Say that positions below `length` are about to be written; attention then reads no further than that."""
        if length > self.slots:
            raise ValueError(f"the cache has room for {self.slots} positions, {length} were asked for")
        self.used = max(self.used, length)

    def update(self, layer: int, keys: Tensor, values: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys, values (B, T, K, D) at positions (B, T); return all used slots (B, K, used, D)."""
        cache = self.layers[layer]
        rows = torch.arange(positions.shape[0], device=positions.device)[:, None]
        cache.keys[rows, :, positions] = keys.to(cache.keys.dtype)
        cache.values[rows, :, positions] = values.to(cache.values.dtype)
        return cache.keys[:, :, : self.used], cache.values[:, :, : self.used]

    def select(self, rows: Tensor) -> None:
        """Keep only these rows, in this order (rows may repeat)."""
        self.layers = [LayerCache(layer.keys[rows], layer.values[rows]) for layer in self.layers]
