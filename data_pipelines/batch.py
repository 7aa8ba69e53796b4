"""PackedBatch: what the transformer trains on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipelines.media_batch import PackedMedia, pack_media
from data_pipelines.outline import Rendered
from tokenizers_vq.token_space import Modality, TokenSpace

# Shapes: B rows, T tokens of a row, M tokens with a weight.

COUNTED_MULTIPLE = 1024
"""The logits of counted tokens are the largest tensor of a step. Were their size another one in every step, the C
library's heap would break into pieces and grow without end (docs/log.md, 2026-11-23)."""


ENDS_MULTIPLE = 64
"""Ends of documents come in few numbers of them, each of which is another size of a tensor."""


class CountedTokens(NamedTuple):
    """Tokens that have a weight, filled up with weight 0 to a multiple of COUNTED_MULTIPLE where there are so many."""

    index: Tensor
    """(M,) int64 into the flattened (B * T) tokens."""
    weights: Tensor
    """(M,)."""

    @classmethod
    def of(cls, weights: Tensor) -> CountedTokens:
        """weights (B, T)."""
        flat = weights.flatten()
        index = flat.nonzero().squeeze(-1)
        fill = min(-len(index) % COUNTED_MULTIPLE, len(flat) - len(index))
        return cls(F.pad(index, (0, fill)), F.pad(flat[index], (0, fill)))


class BatchFacts(NamedTuple):
    """What a step asks of a batch. It is found out on the CPU, where no device has to be waited for."""

    counted: CountedTokens
    num_tokens: int
    """Tokens that are not padding."""
    has_branches: bool
    """Whether any token lies in a branch of its document."""
    ends: Tensor
    """(N + 1,) int32: 0, and where each document of the flattened rows ends, padding being one; filled up with the last
    end to a multiple of ENDS_MULTIPLE."""
    max_length: int
    """Tokens of the longest document, rounded up to a power of two."""
    num_pairs: int
    """Pairs of tokens that attend to one another; those of latents are counted as if they were codes."""


@dataclass(kw_only=True, eq=False)
class PackedBatch:
    """Rows of whole documents; every field but `media` is (B, T).

    `targets` are the next tokens, shifted inside each document and branch, `loss_weights` theirs (0 where there is
    no next token). `documents` number the documents of a row, -1 is padding. `positions` restart in every document.
    `modality` says what the target is. `branches` is 0 in a document's trunk; branch k sees the trunk and itself.
    `spans`, where there are media, is 0 for plain tokens; the media of an image, boi and eoi among them, share a number
    of their row, below 0 where they are noised. `media` are by name (`MediaSpec.name`), empty where there are none.
    Nothing changes a batch; it is not frozen because Lightning's `64-true` and `bf16-true` set its fields on a copy.
    """

    tokens: Tensor
    targets: Tensor
    loss_weights: Tensor
    positions: Tensor
    documents: Tensor
    modality: Tensor
    branches: Tensor
    spans: Tensor | None = None
    media: Mapping[str, PackedMedia] = field(default_factory=dict)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedBatch:
        """The same batch on another device."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PackedBatch:
        """The same batch in pinned memory."""
        return self.map(lambda tensor: tensor.pin_memory())

    def rows(self, start: int, stop: int) -> PackedBatch:
        """Some of the rows."""
        length, (first, end, _) = self.tokens.shape[1], slice(start, stop).indices(len(self.tokens))
        part = self._map(lambda tensor: tensor[first:end])
        media = {name: packed.between(first * length, end * length) for name, packed in self.media.items()}
        return dataclasses.replace(part, media={name: packed for name, packed in media.items() if packed.grids})

    @cached_property
    def facts(self) -> BatchFacts:
        """Found out once, and then moved along with the batch."""
        counted = CountedTokens.of(self.loss_weights)
        ends, max_length = _ends(self.documents)
        has_branches = bool((self.branches != 0).any())
        num_tokens, num_pairs = int((self.documents >= 0).sum()), _num_pairs(self.documents, self.branches)
        return BatchFacts(counted, num_tokens, has_branches, ends, max_length, num_pairs)

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""
        return self.facts.num_tokens

    def map(self, function: Callable[[Tensor], Tensor]) -> PackedBatch:
        """Every tensor, those of media and facts too, through a function that changes no number."""
        media = {name: packed.map(function) for name, packed in self.media.items()}
        moved = dataclasses.replace(self._map(function), media=media)
        counted = CountedTokens(*map(function, self.facts.counted))
        moved.__dict__["facts"] = self.facts._replace(counted=counted, ends=function(self.facts.ends))
        return moved

    def _map(self, function: Callable[[Tensor], Tensor]) -> PackedBatch:
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        changed: dict[str, Any] = {n: function(value) for n, value in values.items() if isinstance(value, Tensor)}
        return dataclasses.replace(self, **changed)


def _ends(documents: Tensor) -> tuple[Tensor, int]:
    """documents (B, T) -> see BatchFacts."""
    changes = F.pad(documents[:, 1:] != documents[:, :-1], (0, 1), value=True)
    ends = F.pad(changes.flatten().nonzero().flatten() + 1, (1, 0))
    max_length = int(ends.diff().max())
    fill = -len(ends) % ENDS_MULTIPLE
    return torch.cat([ends, ends[-1:].expand(fill)]).to(torch.int32), 1 << (max_length - 1).bit_length()


def _num_pairs(documents: Tensor, branches: Tensor) -> int:
    """documents, branches (B, T): each token attends to its document's trunk, and to its branch, up to itself."""
    rows = np.arange(len(documents))[:, None] * (int(documents.max()) + 1)
    real, width = (documents >= 0).numpy(), int(branches.max()) + 1
    of_document, of_branch = (rows + documents.numpy())[real], branches.numpy()[real]
    counts = np.bincount(of_document * width + of_branch, minlength=width).astype(np.int64)
    counts = np.pad(counts, (0, -len(counts) % width)).reshape(-1, width)
    crossing = counts[:, 0] * counts[:, 1:].sum(1)
    return int((counts * (counts + 1) // 2).sum() + crossing.sum())


def collate(
    rows: Sequence[Sequence[Rendered]],
    length: int,
    space: TokenSpace,
    num_rows: int | None = None,
    noised_weight: float | None = None,
) -> PackedBatch:
    """Rows of sequences -> PackedBatch of `length` tokens a row, with rows of padding up to `num_rows`.

    noised_weight: the weight of a noised token; None makes this batch a step of its own.
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
    columns |= _shift_targets(columns, weights, space)
    tensors: dict[str, Any] = {name: torch.from_numpy(column) for name, column in columns.items()}
    total = float(columns["loss_weights"].sum())
    if not any(sequence.media for row in rows for sequence in row):
        return PackedBatch(**tensors)
    spans = _spans(rows, shape)

    def weigh(noised: int) -> float:
        return weight_of_noised(total, noised) if noised_weight is None else noised_weight

    return PackedBatch(**tensors, spans=torch.from_numpy(spans), media=pack_media(rows, spans, weigh))


MIN_WEIGHT = 1e-8
"""Stands for the weight of a step whose tokens have none, so that its noised tokens count all the same."""


def weight_of_noised(tokens: float, noised: int) -> float:
    """The weight of each of so many noised tokens, beside tokens of this summed weight."""
    return max(tokens, MIN_WEIGHT) / max(noised, 1)


def _spans(rows: Sequence[Sequence[Rendered]], shape: tuple[int, int]) -> np.ndarray:
    """(B, T), the media of a row numbered through."""
    spans = np.zeros(shape, dtype=np.int64)
    for index, row in enumerate(rows):
        start = used = 0
        for sequence in row:
            if sequence.spans is not None:
                spans[index, start : start + len(sequence)] = sequence.spans + np.sign(sequence.spans) * used
                used += len(sequence.media)
            start += len(sequence)
    return spans


def _shift_targets(columns: dict[str, np.ndarray], weights: np.ndarray, space: TokenSpace) -> dict[str, np.ndarray]:
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
