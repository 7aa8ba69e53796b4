"""Noise of sampling: exponential, alike everywhere, and of each seed, token and id its own."""

from __future__ import annotations

import math

import pytest
import torch

from unimodal.generation.noise import LOW, exponentials, mixed


def noise(seed: int, number: int, vocab_size: int = 4) -> list[float]:
    """Of one token."""
    return exponentials(torch.tensor([seed]), torch.tensor([number]), vocab_size)[0].tolist()


def test_noise_depends_on_the_seed_and_the_number_of_the_token_alone() -> None:
    seeds, numbers = torch.tensor([3, 4, 3, 3]), torch.tensor([0, 0, 0, 1])
    rows = exponentials(seeds, numbers, 50)
    assert torch.equal(rows[0], rows[2])
    assert not torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[3])
    assert torch.equal(exponentials(seeds[3:], numbers[3:], 50)[0], rows[3])


def test_more_ids_do_not_change_the_noise_of_the_first() -> None:
    assert noise(7, 2, 100)[:10] == noise(7, 2, 10)


@pytest.mark.parametrize("seed", [-(2**63), -1, 0, 1, 2**32, 2**63 - 1])
def test_every_seed_gives_finite_noise_above_zero(seed: int) -> None:
    assert all(0 < value < math.inf for value in noise(seed, 10**6, 1000))


def test_seeds_that_share_their_low_bits_or_swap_with_the_number_have_noise_of_their_own() -> None:
    found = [tuple(noise(*pair)) for pair in ((1, 2), (2, 1), (1 + 2**32, 2), (-1, 2), (1, 2 + 2**20), (3, 0), (0, 3))]
    assert len(set(found)) == len(found)


def test_mixing_is_a_permutation_of_what_a_slow_formula_says() -> None:
    values = torch.tensor([0, 1, 2, 77, LOW])
    for key in (0, 5, -3):
        slow = []
        for value in values.tolist():
            value ^= value >> 16
            value = (value * 0x21F0AAAD + (key & LOW)) & LOW
            value ^= value >> 15
            value = value * 0x735A2D97 & LOW
            slow.append(value ^ (value >> 15))
        assert mixed(values, torch.tensor(key)).tolist() == slow
    many = mixed(torch.arange(1 << 16), torch.tensor(9))
    assert len(many.unique()) == 1 << 16


def test_noise_is_exponential_and_independent_of_its_neighbours() -> None:
    """Chi-square over 32 equal shares of the distribution, and correlations along seeds, tokens and ids."""
    seeds, numbers = torch.arange(64).repeat_interleave(64), torch.arange(64).repeat(64)
    shares = 1 - torch.exp(-exponentials(seeds, numbers, 64))
    counts = torch.histc(shares, 32, 0, 1)
    expected = shares.numel() / 32
    assert ((counts - expected) ** 2 / expected).sum() < 61.1  # 31 degrees of freedom, p = 0.001
    by_place = (shares - 0.5).view(64, 64, 64)
    for axis in range(3):
        for step in (1, 2, 7):
            pairs = by_place * by_place.roll(step, axis)
            assert abs(pairs.mean() * 12) < 4 / math.sqrt(pairs.numel())


def test_pairs_of_tokens_fall_evenly_over_a_square() -> None:
    """The joint distribution of the first two tokens of many seeds: an 8 by 8 histogram."""
    seeds = torch.arange(200_000)
    binned = []
    for number in (0, 1):
        shares = 1 - torch.exp(-exponentials(seeds, torch.full_like(seeds, number), 3)[:, 2])
        binned.append((shares * 8).long().clamp_max(7))
    counts = torch.bincount(binned[0] * 8 + binned[1], minlength=64)
    expected = len(seeds) / 64
    assert ((counts - expected) ** 2 / expected).sum() < 103.4  # 63 degrees of freedom, p = 0.001
