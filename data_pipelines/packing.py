"""Packing: sequences of different lengths into rows of one length. A sequence is never split here."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

_Unit = TypeVar("_Unit")

FULL = 0.98
"""A row of which this share is taken is not held back for something better."""


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: indices of the sequences in each row.

    The longest sequences are placed first, each in the fullest row in which it still fits. Every sequence lands in
    exactly one row. Raises ValueError where one is longer than a row.
    """
    rows: list[list[int]] = []
    capacities: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        if length > capacity:
            raise ValueError(f"a sequence of {length} tokens does not fit a row of {capacity}")
        position = bisect_left(capacities, (length, -1))
        if position < len(capacities):
            free, row = capacities.pop(position)
        else:
            free, row = capacity, len(rows)
            rows.append([])
        rows[row].append(index)
        insort(capacities, (free - length, row))
    return rows


def hold_back(lengths: Sequence[int], rows: Sequence[Sequence[int]], capacity: int, waited: int) -> set[int]:
    """Which rows had better wait for the next window, where their sequences may fit better.

    The emptiest rows wait while they are less than `FULL` and hold together at most a quarter of the sequences. The
    first `waited` sequences have waited once already, and their rows never wait again.
    """
    fill = [sum(lengths[index] for index in row) for row in rows]
    waiting: set[int] = set()
    budget = len(lengths) // 4
    for number in sorted(range(len(rows)), key=fill.__getitem__):
        row = rows[number]
        if fill[number] >= FULL * capacity or len(row) > budget:
            break
        if min(row) >= waited:
            waiting.add(number)
            budget -= len(row)
    return waiting


def in_batches(
    units: Iterable[list[_Unit]], length_of: Callable[[_Unit], int], capacity: int, rows: int
) -> Iterator[list[_Unit]]:
    """Units, each of sequences that belong together, one after the other into batches of at most so many rows.

    A unit that takes more rows than that by itself is a batch.
    """
    held: list[_Unit] = []
    for unit in units:
        if held and len(best_fit([length_of(each) for each in held + unit], capacity)) > rows:
            yield held
            held = []
        held = held + unit
    if held:
        yield held


def efficiency(lengths: Sequence[int], rows: Sequence[Sequence[int]], capacity: int) -> float:
    """Share of the rows' tokens that are not padding."""
    return sum(lengths) / (len(rows) * capacity) if rows else 1.0
