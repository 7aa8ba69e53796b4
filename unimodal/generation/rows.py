"""What is known of the rows of a batch: which rows of the cache there are, and what the host learns of an answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


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


class BatchLimits(NamedTuple):
    """Cache slots of a row, and new tokens of an answer, that a batch holds."""

    slots: int
    steps: int
