"""Sampling: equal to a slow walk down the sorted tokens, and the same for a row whatever its neighbours are."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.oracles.slow_generation import sample_slowly
from unimodal.generation.sampling import SamplingConfig, guide, row_uniforms, sample

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


def random_logits(rows: int, vocabulary: int = 12) -> torch.Tensor:
    """Some tokens forbidden, one at least allowed."""
    logits = 3 * torch.randn(rows, vocabulary)
    forbidden = torch.rand(rows, vocabulary) < 0.3
    forbidden[:, 5] = False
    return logits.masked_fill(forbidden, float("-inf"))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_token_is_the_one_a_slow_walk_finds(settings: dict[str, Any]) -> None:
    logits, uniform = random_logits(300), torch.rand(300)
    found = sample(logits, uniform, SamplingConfig(**settings)).tolist()
    chosen = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, **settings}
    slow = [sample_slowly(row, u, **chosen) for row, u in zip(logits.tolist(), uniform.tolist(), strict=True)]
    assert found == slow


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_ends_of_the_unit_interval_never_give_a_forbidden_token(settings: dict[str, Any]) -> None:
    logits = random_logits(200)
    for uniform in (0.0, 1 - 2**-24):
        tokens = sample(logits, torch.full((200,), uniform), SamplingConfig(**settings))
        assert torch.isfinite(logits.gather(1, tokens[:, None])).all()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_are_drawn_as_often_as_their_probability_says(temperature: float) -> None:
    logits = torch.tensor([1.0, -0.5, 0.2, float("-inf"), 2.0])
    expected = 20_000 * (logits / temperature).softmax(-1)[[0, 1, 2, 4]]
    tokens = sample(logits.expand(20_000, -1), torch.rand(20_000), SamplingConfig(temperature=temperature))
    counts = torch.bincount(tokens, minlength=5)
    assert counts[3] == 0
    chi_square = ((counts[[0, 1, 2, 4]] - expected) ** 2 / expected).sum().item()
    assert chi_square < 16.3  # 3 degrees of freedom, p = 0.001


def test_temperature_zero_takes_the_likeliest_token() -> None:
    logits = random_logits(50)
    assert torch.equal(sample(logits, torch.rand(50), GREEDY), logits.argmax(-1))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_rows_token_does_not_depend_on_the_other_rows(settings: dict[str, Any]) -> None:
    logits, uniform, config = random_logits(40), torch.rand(40), SamplingConfig(**settings)
    together = sample(logits, uniform, config).tolist()
    assert together == [int(sample(logits[i : i + 1], uniform[i : i + 1], config)) for i in range(40)]


def test_sampling_leaves_its_logits_alone() -> None:
    logits = random_logits(5)
    before = logits.clone()
    sample(logits, torch.rand(5), SamplingConfig(top_k=2, top_p=0.5))
    assert torch.equal(logits, before)


def test_guidance_of_scale_one_is_none_and_of_scale_zero_is_unconditional() -> None:
    conditional, unconditional = torch.randn(2, 3, 7)
    assert torch.equal(guide(conditional, unconditional, 1.0), conditional)
    assert torch.equal(guide(conditional, unconditional, 0.0), unconditional)
    expected = unconditional + 2.5 * (conditional - unconditional)
    torch.testing.assert_close(guide(conditional, unconditional, 2.5), expected, rtol=0, atol=0)


def test_every_seed_has_its_own_stream_of_numbers() -> None:
    numbers = row_uniforms([3, 4, 3], 20)
    assert torch.equal(numbers[0], numbers[2]) and not torch.equal(numbers[0], numbers[1])
    assert torch.equal(numbers[1], row_uniforms([4], 20)[0])
    assert numbers.min() >= 0 and numbers.max() < 1


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_p": float("nan")}, "top_p"),
        ({"top_k": -1}, "top_k"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        SamplingConfig(**settings)
