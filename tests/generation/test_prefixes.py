"""Prompts that begin alike are found, whatever order they come in."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from unimodal.generation.prefixes import MIN_SHARED, common_length, plan

PICTURES = [[1, 3, *[100 + picture] * 20, 4] for picture in range(3)]


def test_questions_about_one_picture_share_it() -> None:
    prompts = [[*picture, 7 + question, 9, 5] for question in range(4) for picture in PICTURES]
    planned = plan(prompts)
    assert {item.shared for item in planned} == {len(PICTURES[0])}
    assert [item.request for item in planned] == [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]
    assert [item.group for item in planned] == [0] * 4 + [1] * 4 + [2] * 4


def test_groups_are_served_in_the_order_in_which_their_first_prompts_came() -> None:
    prompts = [[*picture, 9, 5] for picture in (PICTURES[2], PICTURES[0], [1, 50], PICTURES[2], PICTURES[0])]
    assert [item.request for item in plan(prompts)] == [0, 3, 1, 4, 2]


def test_many_samples_of_one_prompt_share_all_but_its_last_id() -> None:
    assert {item.shared for item in plan([PICTURES[0]] * 5)} == {len(PICTURES[0]) - 1}


def test_short_beginnings_are_not_worth_sharing() -> None:
    assert {item.shared for item in plan([[1, 2, 3, 9], [1, 2, 3, 8]])} == {0}


def test_a_prompt_that_shares_little_takes_nothing_from_those_that_share_much() -> None:
    """Questions about one picture keep it in common beside a prompt that has its first half alone."""
    asked = [[*PICTURES[0], 7 + question, 9, 5] for question in range(3)]
    half = [*PICTURES[0][:11], 999, 5]
    shared = {tuple([*asked, half][item.request]): item.shared for item in plan([*asked, half])}
    assert [shared[tuple(prompt)] for prompt in asked] == [len(PICTURES[0])] * 3 and shared[tuple(half)] == 0


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=30), max_size=12), st.integers(0, 9))
def test_a_plan_holds_every_request_once_and_shares_what_is_the_same(prompts: list[list[int]], seed: int) -> None:
    prompts += [[*Random(seed).choices((0, 1), k=25), end, 5] for end in range(3)]
    planned = plan(prompts)
    assert sorted(item.request for item in planned) == list(range(len(prompts)))
    for item in planned:
        members = [prompts[other.request] for other in planned if other.group == item.group]
        assert item.shared == 0 or item.shared >= MIN_SHARED
        assert all(member[: item.shared] == members[0][: item.shared] for member in members)
        assert item.shared < min(map(len, members))


def test_the_common_length_ends_where_prompts_differ_or_one_ends() -> None:
    assert [common_length([1, 2, 3], other) for other in ([1, 2, 4], [1, 2], [2], [1, 2, 3, 4])] == [2, 2, 0, 3]
