"""PackedBatch: what the transformer trains on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data_pipelines.templates import Rendered
from tokenizers_vq.token_space import Modality, TokenSpace

# Shapes: B rows, T tokens of a row.


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """Rows of whole documents; every field is (B, T).

    `targets` are the next tokens, shifted inside each document and branch, `loss_weights` theirs (0 where there is
    no next token). `documents` number the documents of a row, -1 is padding. `positions` restart in every document.
    `modality` says what the target is. `branches` is 0 in a document's trunk; branch k sees the trunk and itself.
    """

    tokens: Tensor
    targets: Tensor
    loss_weights: Tensor
    positions: Tensor
    documents: Tensor
    modality: Tensor
    branches: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedBatch:
        """The same batch on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PackedBatch:
        """The same batch in pinned memory."""
        return self._map(lambda tensor: tensor.pin_memory())

    def rows(self, start: int, stop: int) -> PackedBatch:
        """Some of the rows."""
        return self._map(lambda tensor: tensor[start:stop])

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""
        return int((self.documents >= 0).sum())

    def _map(self, function) -> PackedBatch:
        fields = dataclasses.fields(self)
        return PackedBatch(**{field.name: function(getattr(self, field.name)) for field in fields})


def collate(
    rows: Sequence[Sequence[Rendered]], length: int, space: TokenSpace, num_rows: int | None = None
) -> PackedBatch:
    """Rows of sequences -> PackedBatch of `length` tokens a row, with rows of padding up to `num_rows`."""
    shape = (max(len(rows), num_rows or 0), length)
    columns = {
        "tokens": np.full(shape, space.specials.pad, dtype=np.int64),
        "positions": np.zeros(shape, dtype=np.int64),
        "documents": np.full(shape, -1, dtype=np.int64),
        "branches": np.zeros(shape, dtype=np.int64),
    }
    weights = np.zeros(shape, dtype=np.float32)
    for index, row in enumerate(rows):
        start = 0
        for number, sequence in enumerate(row):
            end = start + len(sequence)
            if end > length:
                raise ValueError(f"{sum(map(len, row))} tokens do not fit a row of {length}")
            columns["tokens"][index, start:end] = sequence.ids
            columns["positions"][index, start:end] = sequence.positions
            columns["documents"][index, start:end] = number
            columns["branches"][index, start:end] = sequence.branches
            weights[index, start:end] = sequence.weights
            start = end
    columns |= _shifted(columns, weights, space)
    return PackedBatch(**{name: torch.from_numpy(column) for name, column in columns.items()})


def _shifted(columns: dict[str, np.ndarray], weights: np.ndarray, space: TokenSpace) -> dict[str, np.ndarray]:
    """Targets, their weights and their modality, where the next token continues the same branch of a document."""
    documents, branches = columns["documents"], columns["branches"]
    follows = (documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] >= 0)
    follows &= branches[:, 1:] == branches[:, :-1]
    targets, loss_weights = np.full_like(columns["tokens"], space.specials.pad), np.zeros_like(weights)
    np.copyto(targets[:, :-1], columns["tokens"][:, 1:], where=follows)
    np.copyto(loss_weights[:, :-1], weights[:, 1:], where=follows)
    modality = np.where(targets >= space.text_size, int(Modality.IMAGE), int(Modality.TEXT))
    modality[documents < 0] = int(Modality.PADDING)
    return {"targets": targets, "loss_weights": loss_weights, "modality": modality}
