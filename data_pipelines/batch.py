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
    """Rows of whole documents; every field is (B, T), and `latents` and `patches` hold copies of pictures.

    `targets` are the next tokens, shifted inside each document and branch, `loss_weights` theirs (0 where there is
    no next token). `documents` number the documents of a row, -1 is padding. `positions` restart in every document.
    `modality` says what the target is. `branches` is 0 in a document's trunk; branch k sees the trunk and itself.
    `spans`, where there are copies, is 0 for plain tokens; the tokens of a copy share a number of their row, below 0
    where it is one in latents that is to be noised.
    """

    tokens: Tensor
    targets: Tensor
    loss_weights: Tensor
    positions: Tensor
    documents: Tensor
    modality: Tensor
    branches: Tensor
    spans: Tensor | None = None
    latents: PackedLatents | None = None
    patches: PackedPatches | None = None

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

    `values` (B, T, C) and `cells` (B, T, 2), row and column in the picture, are those of the latent that stands there;
    cells are -1 elsewhere. `weights` (B, T) are above 0 for noised latents alone: over all batches and ranks of an
    optimizer step they sum to what its `loss_weights` do, so that both losses are means over the step.
    """

    weights: Tensor
    values: Tensor
    cells: Tensor


@dataclass(frozen=True, kw_only=True)
class PackedPatches:
    """Copies of pictures in patches that a ViT sees: `values` uint8 (B, T, C) and `cells` (B, T, 2) as of latents."""

    values: Tensor
    cells: Tensor


Packed = TypeVar("Packed", PackedBatch, PackedLatents, PackedPatches)


def _mapped(packed: Packed, function: Callable[[Tensor], Tensor]) -> Packed:
    """Every tensor through a function."""
    values: dict[str, Any] = {field.name: getattr(packed, field.name) for field in dataclasses.fields(packed)}
    changed: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Tensor):
            changed[name] = function(value)
        elif value is not None:
            changed[name] = _mapped(value, function)
    return type(packed)(**changed)


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
    spans = _spans(rows, shape)
    return PackedBatch(
        **tensors,
        spans=None if spans is None else torch.from_numpy(spans),
        latents=_latents(rows, spans, latent_weight, total),
        patches=_patches(rows, shape),
    )


LEAST_WEIGHT = 1e-8
"""Stands for the weight of a step whose tokens have none, so that its latents count all the same."""


def weight_of_latents(tokens: float, latents: int) -> float:
    """The weight of each of so many noised latents, beside tokens of this summed weight."""
    return max(tokens, LEAST_WEIGHT) / max(latents, 1)


def _spans(rows: Sequence[Sequence[Rendered]], shape: tuple[int, int]) -> np.ndarray | None:
    """(B, T), copies of a row numbered through; None where there is none."""
    if all(sequence.spans is None for row in rows for sequence in row):
        return None
    spans = np.zeros(shape, dtype=np.int64)
    for index, row in enumerate(rows):
        start = used = 0
        for sequence in row:
            if sequence.spans is not None:
                spans[index, start : start + len(sequence)] = sequence.spans + np.sign(sequence.spans) * used
                used += len(sequence.copies) + len(sequence.patches)
            start += len(sequence)
    return spans


Copies = tuple[tuple[int, np.ndarray], ...]


def _laid(
    rows: Sequence[Sequence[Rendered]], shape: tuple[int, int], dtype: Any, copies: Callable[[Rendered], Copies]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Values (B, T, C) and cells (B, T, 2) of the copies of one kind; None where there is none."""
    width = next((values.shape[-1] for row in rows for one in row for _, values in copies(one)), None)
    if width is None:
        return None
    laid, cells = np.zeros((*shape, width), dtype=dtype), np.full((*shape, 2), -1, dtype=np.int64)
    for index, row in enumerate(rows):
        start = 0
        for sequence in row:
            for first, values in copies(sequence):
                place = slice(start + first, start + first + values.shape[0] * values.shape[1])
                laid[index, place] = values.reshape(-1, width)
                cells[index, place] = np.argwhere(np.ones(values.shape[:2]))
            start += len(sequence)
    return laid, cells


def _latents(
    rows: Sequence[Sequence[Rendered]], spans: np.ndarray | None, weight: float | None, total: float
) -> PackedLatents | None:
    found = None if spans is None else _laid(rows, spans.shape, np.float32, lambda sequence: sequence.copies)
    if spans is None or found is None:
        return None
    values, cells = found
    noised = (spans < 0) & (cells[..., 0] >= 0)
    weight = weight_of_latents(total, int(noised.sum())) if weight is None else weight
    arrays = {"weights": noised.astype(np.float32) * np.float32(weight), "values": values, "cells": cells}
    return PackedLatents(**{name: torch.from_numpy(array) for name, array in arrays.items()})


def _patches(rows: Sequence[Sequence[Rendered]], shape: tuple[int, int]) -> PackedPatches | None:
    found = _laid(rows, shape, np.uint8, lambda sequence: sequence.patches)
    return (
        None
        if found is None
        else PackedPatches(**dict(zip(("values", "cells"), map(torch.from_numpy, found), strict=True)))
    )


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
