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
    empty: list[Sequence[Rendered]] = [[] for _ in range(len(rows), num_rows or 0)]
    filled = [_row(row, length, space) for row in [*rows, *empty]]
    columns = {name: torch.from_numpy(np.stack([row[name] for row in filled])) for name in filled[0]}
    return PackedBatch(**columns)


def _row(sequences: Sequence[Rendered], length: int, space: TokenSpace) -> dict[str, np.ndarray]:
    lengths = [len(sequence) for sequence in sequences]
    used = sum(lengths)
    if used > length:
        raise ValueError(f"{used} tokens do not fit a row of {length}")
    row = {
        "tokens": np.full(length, space.specials.pad, dtype=np.int64),
        "targets": np.full(length, space.specials.pad, dtype=np.int64),
        "loss_weights": np.zeros(length, dtype=np.float32),
        "positions": np.zeros(length, dtype=np.int64),
        "documents": np.full(length, -1, dtype=np.int64),
        "branches": np.zeros(length, dtype=np.int64),
    }
    row["documents"][:used] = np.repeat(np.arange(len(sequences)), lengths)
    if sequences:
        row["tokens"][:used] = np.concatenate([sequence.ids for sequence in sequences])
        row["positions"][:used] = np.concatenate([sequence.positions for sequence in sequences])
        row["branches"][:used] = np.concatenate([sequence.branches for sequence in sequences])
        weights = np.zeros(length, dtype=np.float32)
        weights[:used] = np.concatenate([sequence.weights for sequence in sequences])
        _shift(row, weights)
    row["modality"] = _modality(row, space)
    return row


def _shift(row: dict[str, np.ndarray], weights: np.ndarray) -> None:
    """Targets and their weights, where the next token continues the same branch of the same document."""
    documents, branches = row["documents"], row["branches"]
    follows = (documents[1:] == documents[:-1]) & (branches[1:] == branches[:-1]) & (documents[1:] >= 0)
    row["targets"][:-1][follows] = row["tokens"][1:][follows]
    row["loss_weights"][:-1][follows] = weights[1:][follows]


def _modality(row: dict[str, np.ndarray], space: TokenSpace) -> np.ndarray:
    kinds = np.where(row["targets"] >= space.image_offset, int(Modality.IMAGE), int(Modality.TEXT))
    return np.where(row["documents"] >= 0, kinds, int(Modality.PADDING)).astype(np.int64)
