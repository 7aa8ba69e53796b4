"""PackedBatch: what the transformer trains on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from data_pipelines.outline import Rendered
from tokenizers_vq.token_space import Modality, TokenSpace

# Shapes: B rows, T tokens of a row.


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """Rows of whole documents; every field is (B, T), and `latents` holds those of pictures for the flow branch.

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
    latents: PackedLatents | None = None

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

    def _map(self, function: Callable[[Tensor], Tensor]) -> PackedBatch:
        return _mapped(self, function)


@dataclass(frozen=True, kw_only=True)
class PackedLatents:
    """Copies of pictures in latents that stand among the tokens of a PackedBatch.

    `spans` (B, T) is 0 for plain tokens; the tokens of a copy share a number of their row, below 0 where the copy is
    to be noised. `values` (B, T, C) and `cells` (B, T, 2), row and column in the picture, are those of the latent that
    stands there; cells are -1 elsewhere. `weights` (B, T) are above 0 for noised latents alone: over all batches and
    ranks of an optimizer step they sum to what its `loss_weights` do, so that both losses are means over the step.
    """

    spans: Tensor
    weights: Tensor
    values: Tensor
    cells: Tensor


Packed = TypeVar("Packed", PackedBatch, PackedLatents)


def _mapped(packed: Packed, function: Callable[[Tensor], Tensor]) -> Packed:
    """Every tensor through a function."""
    values: dict[str, Any] = {field.name: getattr(packed, field.name) for field in dataclasses.fields(packed)}
    latents = values.pop("latents", None)
    changed: dict[str, Any] = {name: function(value) for name, value in values.items()}
    return type(packed)(**changed, **({} if latents is None else {"latents": _mapped(latents, function)}))


def collate(
    rows: Sequence[Sequence[Rendered]],
    length: int,
    space: TokenSpace,
    num_rows: int | None = None,
    latent_weight: float | None = None,
) -> PackedBatch:
    """Rows of sequences -> PackedBatch of `length` tokens a row, with rows of padding up to `num_rows`.

    latent_weight: the weight of a noised latent; None makes this batch a step of its own.
    """
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
    tensors = {name: torch.from_numpy(column) for name, column in columns.items()}
    total = float(columns["loss_weights"].sum())
    return PackedBatch(**tensors, latents=_latents(rows, shape, latent_weight, total))


LEAST_WEIGHT = 1e-8
"""Stands for the weight of a step whose tokens have none, so that its latents count all the same."""


def weight_of_latents(tokens: float, latents: int) -> float:
    """The weight of each of so many noised latents, beside tokens of this summed weight."""
    return max(tokens, LEAST_WEIGHT) / max(latents, 1)


def _latents(
    rows: Sequence[Sequence[Rendered]], shape: tuple[int, int], weight: float | None, total: float
) -> PackedLatents | None:
    """The copies in latents of all rows; None where there is none."""
    width = next((values.shape[-1] for row in rows for one in row for _, values in one.copies), None)
    if width is None:
        return None
    spans = np.zeros(shape, dtype=np.int64)
    values, cells = np.zeros((*shape, width), dtype=np.float32), np.full((*shape, 2), -1, dtype=np.int64)
    for index, row in enumerate(rows):
        start = used = 0
        for sequence in row:
            if sequence.spans is not None:
                spans[index, start : start + len(sequence)] = sequence.spans + np.sign(sequence.spans) * used
                used += len(sequence.copies)
            for first, latents in sequence.copies:
                place = slice(start + first, start + first + latents.shape[0] * latents.shape[1])
                values[index, place] = latents.reshape(-1, width)
                cells[index, place] = np.argwhere(np.ones(latents.shape[:2]))
            start += len(sequence)
    noised = (spans < 0) & (cells[..., 0] >= 0)
    weight = weight_of_latents(total, int(noised.sum())) if weight is None else weight
    arrays = {"spans": spans, "weights": noised.astype(np.float32) * np.float32(weight)}
    arrays |= {"values": values, "cells": cells}
    return PackedLatents(**{name: torch.from_numpy(array) for name, array in arrays.items()})


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
