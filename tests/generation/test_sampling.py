"""Sampling: equal to a slow walk down the sorted tokens, and the same for a row whatever its neighbours are."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.oracles.slow_generation import kept_heights, sample_slowly
from unimodal.generation.guidance import GuidanceConfig, RowGuidance, guided_logits
from unimodal.generation.log_probs import token_log_probs
from unimodal.generation.noise import LARGEST_SHARE, exponentials
from unimodal.generation.sampling import RowSampling, SamplingConfig, pick

GREEDY = SamplingConfig(temperature=0)
SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.3},
    {"top_k": 1},
    {"top_k": 4},
    {"top_k": 100},
    {"top_p": 0.1},
    {"top_p": 0.7},
    {"top_p": 0.999},
    {"temperature": 2.0, "top_k": 6, "top_p": 0.8},
]


def sample(logits: torch.Tensor, noise: torch.Tensor, config: SamplingConfig) -> torch.Tensor:
    """Tokens of rows that all have the same settings."""
    return pick(logits, noise, RowSampling.of([config] * len(logits)))[0]


def some_noise(logits: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Of the seed's first tokens, one for each row."""
    rows, vocabulary = logits.shape
    return exponentials(torch.full((rows,), seed), torch.arange(rows), vocabulary)


def random_logits(rows: int, vocabulary: int = 12) -> torch.Tensor:
    """Some tokens forbidden, one at least allowed."""
    logits = 3 * torch.randn(rows, vocabulary)
    forbidden = torch.rand(rows, vocabulary) < 0.3
    forbidden[:, 5] = False
    return logits.masked_fill(forbidden, float("-inf"))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_token_is_the_one_a_slow_walk_finds(settings: dict[str, Any]) -> None:
    logits = random_logits(300)
    noise = some_noise(logits)
    found = sample(logits, noise, SamplingConfig(**settings)).tolist()
    chosen = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, **settings}
    slow = [sample_slowly(row, u, **chosen) for row, u in zip(logits.tolist(), noise.tolist(), strict=True)]
    assert found == slow


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_largest_and_the_least_noise_never_give_a_forbidden_token(settings: dict[str, Any]) -> None:
    logits = random_logits(200)
    for shares in (torch.full(logits.shape, 2.0**-33), torch.full(logits.shape, LARGEST_SHARE)):
        tokens = sample(logits, -torch.log1p(-shares), SamplingConfig(**settings))
        assert torch.isfinite(logits.gather(1, tokens[:, None])).all()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_are_drawn_as_often_as_their_probability_says(temperature: float) -> None:
    logits = torch.tensor([1.0, -0.5, 0.2, float("-inf"), 2.0])
    expected = 20_000 * (logits / temperature).softmax(-1)[[0, 1, 2, 4]]
    tokens = sample(
        logits.expand(20_000, -1), some_noise(logits.expand(20_000, -1)), SamplingConfig(temperature=temperature)
    )
    counts = torch.bincount(tokens, minlength=5)
    assert counts[3] == 0
    chi_square = ((counts[[0, 1, 2, 4]] - expected) ** 2 / expected).sum().item()
    assert chi_square < 16.3  # 3 degrees of freedom, p = 0.001


def test_temperature_zero_takes_the_likeliest_token() -> None:
    logits = random_logits(50)
    assert torch.equal(sample(logits, some_noise(logits), GREEDY), logits.argmax(-1))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_rows_token_does_not_depend_on_the_other_rows(settings: dict[str, Any]) -> None:
    logits, config = random_logits(40), SamplingConfig(**settings)
    noise = some_noise(logits)
    together = sample(logits, noise, config).tolist()
    assert together == [int(sample(logits[i : i + 1], noise[i : i + 1], config)) for i in range(40)]


def test_sampling_leaves_its_logits_alone() -> None:
    logits = random_logits(5)
    before = logits.clone()
    sample(logits, some_noise(logits), SamplingConfig(top_k=2, top_p=0.5))
    assert torch.equal(logits, before)


def test_rows_with_settings_of_their_own_get_what_they_get_alone() -> None:
    configs = [SamplingConfig(**settings) for settings in SETTINGS] + [GREEDY]
    logits = random_logits(len(configs))
    noise = some_noise(logits)
    tokens, log_probs = pick(logits, noise, RowSampling.of(configs))
    for row, config in enumerate(configs):
        alone = pick(logits[row : row + 1], noise[row : row + 1], RowSampling.of([config]))
        assert alone[0] == tokens[row]
        torch.testing.assert_close(alone[1][0], log_probs[row])


@pytest.mark.parametrize("settings", [*SETTINGS, {"temperature": 0.0}], ids=str)
def test_the_log_probability_of_a_token_is_what_a_slow_sum_says(settings: dict[str, Any]) -> None:
    logits, rows = random_logits(60), RowSampling.of([SamplingConfig(**settings)] * 60)
    tokens, log_probs = pick(logits, some_noise(logits), rows)
    torch.testing.assert_close(token_log_probs(logits, tokens, rows).log_probs, log_probs, rtol=1e-5, atol=1e-6)
    chosen = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, **settings}
    for row, token, found in zip(logits.tolist(), tokens.tolist(), log_probs.tolist(), strict=True):
        heights = kept_heights(row, chosen["temperature"] or 1, chosen["top_k"], chosen["top_p"])
        if token in heights:
            assert found == pytest.approx(math.log(heights[token] / sum(heights.values())), abs=1e-5)


def test_a_token_that_is_never_drawn_has_no_probability() -> None:
    logits = torch.tensor([[1.0, 0.0, float("-inf")]])
    rows = RowSampling.of([SamplingConfig(top_k=1)])
    found = [token_log_probs(logits, torch.tensor([token]), rows).log_probs.item() for token in range(3)]
    assert found == [0.0, -math.inf, -math.inf]


def guided(
    config: GuidanceConfig, full: torch.Tensor, image: torch.Tensor, null: torch.Tensor, at: float
) -> torch.Tensor:
    """Rows that all have the same settings, a share `at` of their image drawn."""
    return guided_logits(full, image, null, RowGuidance.of([config] * len(full)), torch.full((len(full),), at))


def test_two_way_guidance_goes_from_the_null_context_through_the_full_one() -> None:
    full, null = torch.randn(2, 3, 7)
    for scale in (0.0, 1.0, 2.5):
        expected = null + scale * (full - null)
        torch.testing.assert_close(guided(GuidanceConfig(scale=scale), full, null, null, 0.3), expected)


def test_three_way_guidance_weighs_pictures_and_words_apart() -> None:
    full, image, null = torch.randn(3, 2, 7)
    config = GuidanceConfig(scale=3.0, image_scale=1.2)
    expected = null + 1.2 * (image - null) + 3.0 * (full - image)
    torch.testing.assert_close(guided(config, full, image, null, 0.0), expected)


@pytest.mark.parametrize(("schedule", "shares"), [("linear", (0.0, 0.25, 1.0)), ("cosine", (0.0, 0.1464466, 1.0))])
def test_a_schedule_lets_guidance_grow_from_none_to_its_full_scale(schedule: Any, shares: tuple[float, ...]) -> None:
    full, null = torch.randn(2, 3, 7)
    for at, share in zip((0.0, 0.25, 1.0), shares, strict=True):
        found = guided(GuidanceConfig(scale=5.0, schedule=schedule), full, null, null, at)
        torch.testing.assert_close(found, null + (1 + 4 * share) * (full - null), rtol=1e-5, atol=1e-5)
