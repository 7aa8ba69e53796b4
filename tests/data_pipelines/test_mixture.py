"""Mixtures: every source has its share at every moment, stages change it, and the state is exact."""

from __future__ import annotations

import itertools
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.mixture import Mixture, MixtureConfig
from data_pipelines.shards.documents import epoch_order


def mixture(config: MixtureConfig, *sizes: int, seed: int = 0) -> Mixture:
    return Mixture([[size] for size in sizes], config, seed, together=64)


def shares(drawing: Mixture, draws: int) -> Counter[int]:
    return Counter(drawn.source for _ in range(draws) if (drawn := drawing.draw()))


@given(weights=st.lists(st.floats(0.1, 10), min_size=1, max_size=5), draws=st.integers(1, 300))
def test_every_source_has_had_its_share_of_draws_to_within_one_document_at_every_moment(
    weights: list[float], draws: int
) -> None:
    found = shares(mixture(MixtureConfig(weights=tuple(weights)), *[7] * len(weights)), draws)
    for source, weight in enumerate(weights):
        due = draws * weight / sum(weights)
        assert due - 1 - 1e-6 <= found[source] <= due + len(weights)


def test_a_source_of_weight_nought_is_never_drawn() -> None:
    assert shares(mixture(MixtureConfig(weights=(1, 0)), 5, 5), 50) == {0: 50}


def test_the_second_stage_draws_in_its_own_proportion() -> None:
    drawing = mixture(MixtureConfig(weights=(1, 1, 0), second_weights=(0.5, 0.5, 1)), 100, 100, 100)
    assert shares(drawing, 100) == {0: 50, 1: 50}
    drawing.start_stage(1)
    assert shares(drawing, 100) == {0: 25, 1: 25, 2: 50}


def test_a_source_that_runs_dry_repeats_in_another_order_or_ends_the_mixture() -> None:
    repeats = mixture(MixtureConfig(weights=(1,)), 9)
    drawn = [repeats.draw() for _ in range(18)]
    orders = [[d.index for d in drawn if d and d.epoch == epoch] for epoch in (0, 1)]
    assert [sorted(order) for order in orders] == [list(range(9))] * 2 and orders[0] != orders[1]
    ends = mixture(MixtureConfig(weights=(1, 2), when_dry="stop"), 9, 4)
    drawn = list(itertools.takewhile(lambda d: d is not None, iter(ends.draw, "never")))
    assert Counter(d.source for d in drawn if d) == {0: 2, 1: 4}
    assert ends.draw() is None


@given(before=st.integers(0, 60), seed=st.integers(0, 3))
def test_a_mixture_goes_on_from_its_state_as_if_it_had_not_stopped(before: int, seed: int) -> None:
    config = MixtureConfig(weights=(3, 1), second_weights=(1, 1))
    first, second = (mixture(config, 11, 5, seed=seed) for _ in range(2))
    for number in range(before):
        first.start_stage(int(number >= 20))
        first.draw()
    second.load_state(first.state())
    assert [first.draw() for _ in range(30)] == [second.draw() for _ in range(30)]


@given(sizes=st.lists(st.integers(0, 9), max_size=8), together=st.integers(1, 4), seed=st.integers(0, 9))
def test_an_order_has_every_document_once_and_reads_few_shards_at_a_time(
    sizes: list[int], together: int, seed: int
) -> None:
    order = epoch_order(sizes, together, Random(seed))
    assert sorted(order) == list(range(sum(sizes)))
    shard_of = [shard for shard, size in enumerate(sizes) for _ in range(size)]
    groups = [shard_of[index] for index in order]
    seen = list(dict.fromkeys(groups))
    for first in range(len(seen)):
        still_open = {shard for shard in seen[: first + 1] if shard in groups[groups.index(seen[first]) :]}
        assert len(still_open) <= together


def test_wrong_mixtures_are_refused_in_one_line() -> None:
    for weights, second in (((1, -1), None), ((0, 0), None), ((1, 1), (1,))):
        with pytest.raises(ValueError, match="weights are not negative, not all 0, and as many in both stages"):
            MixtureConfig(weights=weights, second_weights=second)
    with pytest.raises(ValueError, match=r"the second stage starts in \(0, 1\] of the run, got"):
        MixtureConfig(weights=(1,), second_from=0)
    with pytest.raises(ValueError, match="when_dry is 'repeat' or 'stop', got 'shrug'"):
        MixtureConfig(weights=(1,), when_dry="shrug")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="3 weights for 2 folders of shards: give one for each"):
        mixture(MixtureConfig(weights=(1, 1, 1)), 4, 4)
    with pytest.raises(ValueError, match="folder 2 of 2 holds no document to train on"):
        mixture(MixtureConfig(weights=(1, 1)), 4, 0)
    with pytest.raises(ValueError, match="saved with 1 sources, now there are 2"):
        mixture(MixtureConfig(weights=(1, 1)), 4, 4).load_state(mixture(MixtureConfig(weights=(1,)), 4).state())
