"""Rows of a batch: which rows of the cache there are and how they move, and what the host learns of an answer."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from unimodal.model.cache import KVCache


@dataclass(kw_only=True)
class Row:
    """A row of the cache: its answer, its position relative to the answer's, its slot relative to its position.

    `role` is 0 for the answer's main row, 1 for its null context, 2 for its images' context.
    """

    answer: int
    shift: int = 0
    offset: int = 0
    role: int = 0


class RowStatus(NamedTuple):
    """What the host learns about one answer."""

    done: bool
    in_image: bool
    waits: bool
    step: int
    position: int
    token: int


def close_gaps(rows: list[Row], kept: Sequence[int], cache: KVCache, length: int) -> None:
    """Keep some rows: those at the end move into the gaps, so that no more is copied than has to be."""
    gaps = sorted(set(range(len(kept))).difference(kept))
    for gap, source in zip(gaps, (row for row in kept if row >= len(kept)), strict=True):
        cache.copy_row(source, gap, length)
        rows[gap] = rows[source]
    del rows[len(kept) :]


def move_last(rows: list[Row], answers: Set[int], cache: KVCache, length: int) -> int:
    """Bring the rows of some answers to the end; the number of the others."""
    count = sum(row.answer not in answers for row in rows)
    early = [index for index in range(count) if rows[index].answer in answers]
    late = [index for index in range(count, len(rows)) if rows[index].answer not in answers]
    for one, other in zip(early, late, strict=True):
        cache.swap_rows(one, other, length)
        rows[one], rows[other] = rows[other], rows[one]
    return count


class RowsByRole(NamedTuple):
    """Of each answer its main row, and the rows it is compared with: the row before where it has none of a role."""

    main: list[int]
    null: list[int]
    image: list[int]


def rows_by_role(rows: Sequence[Row], numbers: Sequence[int]) -> RowsByRole:
    """The rows of answers, in the order of their numbers."""
    by_role = [{row.answer: index for index, row in enumerate(rows) if row.role == role} for role in range(3)]
    main = [by_role[0][number] for number in numbers]
    assert by_role[1] or main == list(range(len(main)))
    null = [by_role[1].get(number, row) for number, row in zip(numbers, main, strict=True)]
    return RowsByRole(main, null, [by_role[2].get(number, row) for number, row in zip(numbers, null, strict=True)])


class BatchLimits(NamedTuple):
    """Cache slots of a row, and new tokens of an answer, that a batch holds."""

    slots: int
    steps: int


def write_where(chosen: Tensor, target: Tensor, index: Tensor, values: Tensor) -> None:
    """Write values (P, W) at index (P, W) of target (P, N), where they are chosen (P, W)."""
    target.scatter_(1, index, torch.where(chosen, values, target.gather(1, index)))
