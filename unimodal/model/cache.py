"""The key/value cache: what attention has already computed for each row of a batch."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from unimodal.model.config import TransformerConfig

# Shapes: B rows, T new tokens, K key/value heads, S cache slots, D head width.


GROWTH = 1.5
"""Rows of a cache that has grown, by those it had."""
HEADROOM = 0.2
"""The share of a GPU's free memory that is left to what else a decoding step takes."""


class LayerCache(NamedTuple):
    """Keys and values (B, K, S, D) of one layer; slot j holds position j of its row."""

    keys: Tensor
    values: Tensor


class LayerSlots(NamedTuple):
    """What one layer of a forward pass reads and writes of a cache."""

    keys: Tensor
    values: Tensor
    used: int
    """Slots that attention reads."""

    def update(self, keys: Tensor, values: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys, values (B, T, K, D) at slots (B, T); return all used slots (B, K, used, D)."""
        rows = torch.arange(slots.shape[0], device=slots.device)[:, None]
        self.keys[rows, :, slots] = keys.to(self.keys.dtype)
        self.values[rows, :, slots] = values.to(self.values.dtype)
        return self.keys[:, :, : self.used], self.values[:, :, : self.used]


class KVCache:
    """Preallocated keys and values for all layers. Rows may have different lengths.

    A token is written to the slot of its position, so right padding of a ragged prompt is simply overwritten by
    what the row decodes next.
    """

    def __init__(
        self,
        config: TransformerConfig,
        rows: int,
        slots: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        layers: int | None = None,
    ) -> None:
        """`layers` is that of the trunk by default; `ModelConfig.cached_layers` counts what decoding keeps."""
        shape = (rows, config.num_kv_heads, slots, config.head_dim)
        self.layers = [
            LayerCache(torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device))
            for _ in range(config.num_layers if layers is None else layers)
        ]
        self.slots = slots
        self.used = 0
        self._beginnings: dict[int, KVCache] = {}

    @property
    def rows(self) -> int:
        """Rows there are."""
        return self.layers[0].keys.shape[0]

    def reserve(self, length: int) -> None:
        """Say that positions below `length` are about to be written and seen; attention reads no further than that."""
        if length > self.slots:
            raise ValueError(f"the cache holds {self.slots} positions, {length} were asked for")
        self.used = length

    def of_layer(self, layer: int) -> LayerSlots:
        """One layer's part, for a forward pass for which slots are reserved."""
        return LayerSlots(*self.layers[layer], self.used)

    def view(self, start: int, stop: int) -> KVCache:
        """Rows `start` to `stop` as a cache of their own, on the same memory."""
        part = copy.copy(self)
        part._beginnings = {}
        part.layers = [LayerCache(layer.keys[start:stop], layer.values[start:stop]) for layer in self.layers]
        return part

    def beginning(self, rows: int) -> KVCache:
        """Rows 0 to `rows`, the same object until the cache grows: a graph finds its memory where it was recorded."""
        if rows not in self._beginnings:
            self._beginnings[rows] = self.view(0, rows)
        return self._beginnings[rows]

    def grow(self, rows: int) -> None:
        """Hold at least this many rows; what the rows hold stays.

        By half as many more at least, so that rows which come one by one are not copied each time; layer by layer, so
        that no more than one layer is there twice.
        """
        if rows <= self.rows:
            return
        missing = max(rows, int(GROWTH * self.rows)) - self.rows
        self._beginnings.clear()
        for number, layer in enumerate(self.layers):
            self.layers[number] = LayerCache(_longer(layer.keys, missing), _longer(layer.values, missing))

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Give row `target` the first `length` positions of row `source`."""
        for layer in self.layers:
            for part in layer:
                part[target, :, :length] = part[source, :, :length]

    def swap_rows(self, one: int, other: int, length: int) -> None:
        """Exchange the first `length` positions of two rows."""
        for layer in self.layers:
            for part in layer:
                part[[one, other], :, :length] = part[[other, one], :, :length]

    def gather(self, rows: list[int], slots: int) -> KVCache:
        """Copies of some rows, with the first `slots` positions of each, or as many as there are."""
        part = copy.copy(self)
        part._beginnings = {}
        part.slots = slots
        part.layers = [LayerCache(*(_cut(part[rows], slots) for part in layer)) for layer in self.layers]
        return part

    def scatter(self, rows: list[int], source: KVCache) -> None:
        """Write what `gather` took back, after it was changed."""
        for layer, given in zip(self.layers, source.layers, strict=True):
            for part, new in zip(layer, given, strict=True):
                part[rows] = new

    def export_row(self, row: int, length: int) -> list[LayerCache]:
        """A copy of the first `length` positions of a row: each layer (K, length, D)."""
        return [LayerCache(*(part[row, :, :length].clone() for part in layer)) for layer in self.layers]

    def load_row(self, row: int, beginning: list[LayerCache]) -> None:
        """Write what `export_row` gave to the beginning of a row."""
        for layer, given in zip(self.layers, beginning, strict=True):
            for part, new in zip(layer, given, strict=True):
                part[row, :, : new.shape[1]] = new


def _cut(part: Tensor, slots: int) -> Tensor:
    """(B, K, S, D) with this number of slots, new ones being 0."""
    missing = slots - part.shape[2]
    return (
        part[:, :, :slots]
        if missing <= 0
        else torch.cat([part, part.new_zeros(*part.shape[:2], missing, part.shape[3])], 2)
    )


def _longer(part: Tensor, missing: int) -> Tensor:
    return torch.cat([part, part.new_zeros(missing, *part.shape[1:])])


def rows_that_fit(
    config: TransformerConfig, slots: int, dtype: torch.dtype, device: torch.device, layers: int | None = None
) -> int | None:
    """Rows of such a `KVCache` that the free memory of a GPU holds, one at least; None where there is no GPU."""
    if device.type != "cuda":
        return None
    layers = config.num_layers if layers is None else layers
    row = 2 * layers * config.num_kv_heads * slots * config.head_dim * dtype.itemsize
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(1, int((1 - HEADROOM) * free / row / GROWTH))
