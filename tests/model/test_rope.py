"""Rotary positions: only distances matter, and the layout is Llama's."""

from __future__ import annotations

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from tests.oracles.slow_attention import rotate_slowly
from unimodal.model.config import RopeConfig
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


def test_scores_change_when_the_distance_changes(rotary: RotaryEmbedding) -> None:
    query, key = torch.randn(2, 1, 1, 1, WIDTH, dtype=torch.float64)
    scores = [
        (rotate(query, *rotary(torch.tensor([[position]]), torch.float64)) * key).sum().item() for position in range(5)
    ]
    assert len({round(score, 6) for score in scores}) == 5


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
