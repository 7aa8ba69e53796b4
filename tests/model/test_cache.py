"""The key/value cache: what it holds gives the same logits as computing everything again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.oracles.passes import logits
from tests.oracles.tiny import tiny_model
from unimodal.model.cache import KVCache
from unimodal.model.model import UnifiedModel

KINDS: dict[str, dict[str, Any]] = {
    "pre": {},
    "swin": {"norm_placement": "swin"},
    "without QK-norm": {"qk_norm": None},
    "grouped": {"num_heads": 4, "num_kv_heads": 2},
}
SLOTS = 20


@pytest.fixture(params=KINDS.values(), ids=list(KINDS))
def model(request: pytest.FixtureRequest) -> UnifiedModel:
    return tiny_model(**request.param).requires_grad_(False)


def empty_cache(model: UnifiedModel, rows: int) -> KVCache:
    return KVCache(model.config.trunk, rows, SLOTS, torch.float64)


def feed(model: UnifiedModel, cache: KVCache, tokens: Tensor, start: Tensor) -> Tensor:
    """Logits of tokens (B, T) that begin at position start (B,) of their rows."""
    positions = start[:, None] + torch.arange(tokens.shape[1])
    cache.reserve(int(positions.max()) + 1)
    return logits(model, tokens, positions, cache=cache)


@pytest.mark.parametrize("pieces", [(12,), (5, 7), (1,) * 12, (4, 1, 1, 6)])
def test_logits_with_a_cache_equal_those_without(model: UnifiedModel, pieces: tuple[int, ...]) -> None:
    tokens = torch.randint(24, (3, 12))
    cache, start, found = empty_cache(model, 3), 0, []
    for piece in pieces:
        found.append(feed(model, cache, tokens[:, start : start + piece], torch.full((3,), start)))
        start += piece
    torch.testing.assert_close(torch.cat(found, dim=1), logits(model, tokens), rtol=1e-12, atol=1e-12)


def test_rows_of_different_lengths_decode_as_they_would_alone(model: UnifiedModel) -> None:
    lengths = torch.tensor([2, 7, 4])
    rows = [torch.randint(24, (int(length) + 6,)) for length in lengths]
    prompt = torch.zeros(3, 7, dtype=torch.int64)
    for row, tokens in enumerate(rows):
        prompt[row, : lengths[row]] = tokens[: lengths[row]]
    cache = empty_cache(model, 3)
    feed(model, cache, prompt, torch.zeros(3, dtype=torch.int64))
    for step in range(6):
        new = torch.stack([tokens[lengths[row] + step] for row, tokens in enumerate(rows)])
        found = feed(model, cache, new[:, None], lengths + step)
        for row, tokens in enumerate(rows):
            expected = logits(model, tokens[: lengths[row] + step + 1][None])[0, -1]
            torch.testing.assert_close(found[row, 0], expected, rtol=1e-12, atol=1e-12)


def test_slots_past_a_rows_own_position_are_never_seen(model: UnifiedModel) -> None:
    tokens = torch.randint(24, (2, 6))
    clean, stale = empty_cache(model, 2), empty_cache(model, 2)
    for layer in stale.layers:
        layer.keys.fill_(1e3)
        layer.values.fill_(1e3)
    stale.reserve(SLOTS)
    start = torch.tensor([0, 0])
    torch.testing.assert_close(feed(model, stale, tokens, start), feed(model, clean, tokens, start), rtol=0, atol=1e-13)


def test_rows_that_were_moved_copied_and_put_back_go_on_as_before(model: UnifiedModel) -> None:
    tokens = torch.randint(24, (3, 5))
    cache = empty_cache(model, 3)
    feed(model, cache, tokens, torch.zeros(3, dtype=torch.int64))
    beginning = cache.export_row(0, 5)
    cache.copy_row(2, 0, 5)
    cache.grow(6)
    cache.load_row(4, beginning)
    cache.copy_row(1, 5, 5)
    assert cache.rows == 6
    chosen, new = [2, 1, 0, 1], torch.randint(24, (4, 1))
    rows = {0: 2, 1: 1, 4: 0, 5: 1}
    expected = logits(model, torch.cat([tokens[chosen], new], dim=1))[:, -1:]
    for index, row in enumerate(rows):
        assert chosen[index] == rows[row]
        found = feed(model, cache.view(row, row + 1), new[index : index + 1], torch.tensor([5]))
        torch.testing.assert_close(found, expected[index : index + 1], rtol=1e-12, atol=1e-12)


def test_a_view_shares_the_memory_of_its_rows(model: UnifiedModel) -> None:
    tokens = torch.randint(24, (2, 5))
    cache, start = empty_cache(model, 4), torch.zeros(2, dtype=torch.int64)
    feed(model, cache.view(1, 3), tokens, start)
    assert not cache.layers[0].keys[0].any() and not cache.layers[0].keys[3].any()
    alone = empty_cache(model, 2)
    feed(model, alone, tokens, start)
    assert torch.equal(cache.layers[1].values[1:3], alone.layers[1].values)


def test_more_positions_than_slots_are_refused() -> None:
    cache = empty_cache(tiny_model(), 1)
    with pytest.raises(ValueError, match="the cache holds 20 positions, 21"):
        cache.reserve(21)


def test_rows_that_are_swapped_hold_each_others_positions(model: UnifiedModel) -> None:
    cache = empty_cache(model, 3)
    feed(model, cache, torch.randint(24, (3, 5)), torch.zeros(3, dtype=torch.int64))
    before = [cache.export_row(row, 5) for row in range(3)]
    cache.swap_rows(0, 2, 5)
    for row, source in enumerate((2, 1, 0)):
        torch.testing.assert_close(cache.export_row(row, 5), before[source], rtol=0, atol=0)
