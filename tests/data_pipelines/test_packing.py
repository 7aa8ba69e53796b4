"""Packing: every sequence in exactly one row, no row too full, and little room wasted."""

from __future__ import annotations

import random
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.packing import FULL, best_fit, efficiency, hold_back


@given(capacity=st.integers(1, 60), data=st.data())
def test_every_sequence_lands_whole_in_exactly_one_row_and_no_row_overflows(capacity: int, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, capacity), max_size=40))
    rows = best_fit(lengths, capacity)
    assert sorted(chain.from_iterable(rows)) == list(range(len(lengths)))
    assert all(rows) and all(sum(lengths[index] for index in row) <= capacity for row in rows)
    assert sum(lengths) <= len(rows) * capacity


@given(lengths=st.lists(st.integers(1, 20), min_size=2, max_size=40))
def test_no_two_rows_could_have_been_one(lengths: list[int]) -> None:
    filled = sorted(sum(lengths[index] for index in row) for row in best_fit(lengths, 20))
    assert len(filled) < 2 or filled[0] + filled[1] > 20


def test_a_sequence_goes_to_the_fullest_row_that_has_room() -> None:
    assert best_fit([6, 7, 3], 10) == [[1, 2], [0]]
    assert best_fit([2, 5, 5, 8], 10) == [[3, 0], [1, 2]]


def test_rows_of_typical_documents_are_at_least_97_percent_full() -> None:
    draw = random.Random(0)
    lengths = [draw.choice([76, 78, 80, 110, 125, 140, draw.randint(70, 160)]) for _ in range(512)]
    assert efficiency(lengths, best_fit(lengths, 160), 160) < 0.97, "long documents in short rows cannot be packed well"
    lengths = [draw.randint(10, 120) for _ in range(512)]
    assert efficiency(lengths, best_fit(lengths, 160), 160) > 0.97


def test_efficiency_is_the_share_of_tokens_that_are_not_padding() -> None:
    assert efficiency([3, 4, 5], [[0, 1], [2]], 10) == pytest.approx(12 / 20)
    assert efficiency([], [], 10) == 1.0


def test_a_sequence_longer_than_a_row_is_refused_with_both_lengths() -> None:
    with pytest.raises(ValueError, match="a sequence of 11 tokens does not fit a row of 10"):
        best_fit([3, 11], 10)


@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=60), waited=st.integers(0, 20))
def test_rows_held_back_are_not_full_few_and_wait_only_once(lengths: list[int], waited: int) -> None:
    rows = best_fit(lengths, 20)
    held = hold_back(lengths, rows, 20, waited)
    assert all(sum(lengths[index] for index in rows[number]) < FULL * 20 for number in held)
    assert all(index >= waited for number in held for index in rows[number])
    assert sum(len(rows[number]) for number in held) <= len(lengths) // 4


def test_the_emptiest_row_waits_first() -> None:
    lengths = [20, 20, 20, 20, 20, 20, 20, 12, 15]
    assert hold_back(lengths, [[index] for index in range(9)], 20, waited=0) == {7, 8}
    assert hold_back(lengths, [[index] for index in range(9)], 20, waited=8) == {8}
    assert hold_back(lengths[3:], [[index] for index in range(6)], 20, waited=0) == {4}
