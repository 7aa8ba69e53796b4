"""Rotary positions: only distances matter, and the layout is Llama's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from tests.oracles.slow_attention import rotate_slowly
from unimodal.model.config import RopeConfig, RopeScaling
from unimodal.model.rope import RotaryEmbedding, rotate

WIDTH, THETA = 16, 10_000.0


@pytest.fixture
def rotary() -> RotaryEmbedding:
    return RotaryEmbedding(WIDTH, RopeConfig(theta=THETA))


@pytest.mark.parametrize("shift", [1, 17, 4000])
def test_scores_depend_on_the_distance_of_two_tokens_alone(rotary: RotaryEmbedding, shift: int) -> None:
    queries, keys = torch.randn(2, 1, 9, 3, WIDTH, dtype=torch.float64)
    positions = torch.randint(0, 90, (1, 9))

    def scores(offset: int) -> torch.Tensor:
        turned = [rotate(x, *rotary(positions + offset, torch.float64)) for x in (queries, keys)]
        return torch.einsum("bqhd,bkhd->bhqk", *turned)

    torch.testing.assert_close(scores(shift), scores(0), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("pair", range(WIDTH // 2))
def test_every_pair_of_channels_turns_at_a_rate_of_its_own(rotary: RotaryEmbedding, pair: int) -> None:
    """Channel k against channel k is a cosine of the distance, and against channel k + W/2 a sine of it."""
    x = torch.zeros(1, 60, 1, WIDTH, dtype=torch.float64)
    x[..., pair] = 1
    turned = rotate(x, *rotary(torch.arange(60)[None], torch.float64))[0, :, 0]
    angles = torch.arange(60, dtype=torch.float64) * THETA ** (-2 * pair / WIDTH)
    torch.testing.assert_close(turned @ turned[0], angles.cos(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(turned[:, pair + WIDTH // 2], angles.sin(), rtol=1e-10, atol=1e-10)


def test_the_layout_is_the_half_split_one_of_transformers(rotary: RotaryEmbedding) -> None:
    x = torch.randn(2, 5, 3, WIDTH, dtype=torch.float64)
    positions = torch.randint(0, 500, (2, 5))
    frequencies = 1.0 / THETA ** (torch.arange(0, WIDTH, 2, dtype=torch.float64) / WIDTH)
    angles = (positions[..., None] * frequencies).repeat(1, 1, 2)
    expected, _ = apply_rotary_pos_emb(x, x, angles.cos(), angles.sin(), unsqueeze_dim=2)
    torch.testing.assert_close(rotate(x, *rotary(positions, torch.float64)), expected, rtol=1e-12, atol=1e-12)


def test_rotation_is_a_turn_of_complex_numbers(rotary: RotaryEmbedding) -> None:
    x = torch.randn(1, 6, 1, WIDTH, dtype=torch.float64)
    turned = rotate(x, *rotary(torch.arange(6)[None], torch.float64))
    for position in range(6):
        expected = rotate_slowly(x[0, position, 0], position, THETA)
        torch.testing.assert_close(turned[0, position, 0], expected, rtol=1e-12, atol=1e-12)


def test_half_precision_angles_are_those_of_full_precision_rounded_once(rotary: RotaryEmbedding) -> None:
    positions = torch.arange(4000)[None]
    for half, full in zip(rotary(positions, torch.bfloat16), rotary(positions, torch.float32), strict=True):
        assert half.dtype == torch.bfloat16
        assert torch.equal(half, full.bfloat16())


def frequencies(head_dim: int, config: RopeConfig) -> torch.Tensor:
    """(W/2,) radians a position."""
    cos, sin = RotaryEmbedding(head_dim, config)(torch.tensor([[1]]), torch.float64)
    return torch.atan2(sin, cos).flatten()


def theirs(head_dim: int, config: RopeConfig) -> torch.Tensor:
    scaling, parameters = config.scaling, {"rope_type": "llama3", "rope_theta": config.theta}
    assert scaling is not None
    parameters |= {"factor": scaling.factor, "original_max_position_embeddings": scaling.original_max_length}
    parameters |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    whole = LlamaConfig(hidden_size=2 * head_dim, num_attention_heads=2, rope_parameters=parameters)
    found, _ = ROPE_INIT_FUNCTIONS["llama3"](whole, torch.device("cpu"))
    return found.double()


LLAMA_3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_length": 8192}


@pytest.mark.parametrize(
    ("head_dim", "theta", "changes"),
    [
        (128, 500_000.0, {}),
        (64, 500_000.0, {"factor": 32.0}),
        (16, 10_000.0, {"original_max_length": 512}),
        (6, 1_000.0, {"original_max_length": 17, "factor": 3.7}),
        (10, 10_000.0, {"low_freq_factor": 0.3, "high_freq_factor": 0.31}),
        (34, 77.0, {"low_freq_factor": 2.5, "high_freq_factor": 90.0, "original_max_length": 100}),
        (16, 10_000.0, {"factor": 1.0}),
        (16, 10_000.0, {"original_max_length": 1}),
        (16, 10_000.0, {"original_max_length": 10**9}),
    ],
)
def test_scaled_frequencies_are_those_of_llama_3(head_dim: int, theta: float, changes: dict[str, Any]) -> None:
    config = RopeConfig(theta=theta, scaling=RopeScaling(**{**LLAMA_3, **changes}))
    found, expected = frequencies(head_dim, config), theirs(head_dim, config)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_scaling_keeps_short_waves_stretches_long_ones_and_meets_between() -> None:
    plain, scaled = (frequencies(128, RopeConfig(theta=500_000.0, scaling=s)) for s in (None, RopeScaling()))
    ratio = plain / scaled
    assert ratio[0] == pytest.approx(1) and ratio[-1] == pytest.approx(8)
    assert (ratio.diff() >= -1e-9).all()
    between = (ratio > 1.001) & (ratio < 7.999)
    rotations = 8192 * plain / (2 * torch.pi)
    assert between.any() and rotations[between].min() > 1 and rotations[between].max() < 4


@pytest.mark.parametrize(
    "changes",
    [{"factor": 0.5}, {"low_freq_factor": 4.0}, {"low_freq_factor": 0.0}, {"original_max_length": 0}],
)
def test_a_scaling_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a factor of at least 1 and low below high frequencies"):
        RopeScaling(**changes)


def test_a_base_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="theta is above 1, got 1"):
        RopeConfig(theta=1.0)
