"""Contexts and prompts of unequal length in one cache: each row attends to all of its own and to nothing else."""

from __future__ import annotations

import pytest

from tests.generation.test_engine import HOT, SPACE, engine, ids
from tests.oracles.slow_generation import decode_slowly
from unimodal.generation import prefill
from unimodal.generation.guidance import GuidanceConfig
from unimodal.generation.requests import DecodeConfig, Request

PICTURE = [SPACE.specials.boi, *range(SPACE.image_offset, SPACE.image_offset + 4), SPACE.specials.eoi]


@pytest.mark.parametrize("prompt", [[1, *PICTURE, 5], [1, *PICTURE, 9, 5]], ids=["picture", "words"])
@pytest.mark.parametrize("mode", ["image", "mixed"])
def test_an_answer_is_guided_by_all_of_a_context_that_is_longer_than_its_prompt(mode: str, prompt: list[int]) -> None:
    """Without its words a prompt of a picture alone is longer: <null> is added and nothing is taken away."""
    guidance = GuidanceConfig(scale=2.0, image_scale=3.0)
    config = DecodeConfig(mode=mode, max_new_tokens=30, guidance=guidance, sampling=HOT)  # pyright: ignore[reportArgumentType]
    decoder = engine()
    asked = [Request(prompt=prompt, config=config, seed=seed) for seed in range(6)]
    slow = [decode_slowly(decoder.model, SPACE, prompt, seed, config) for seed in range(6)]
    for request, (expected, log_probs) in zip(asked, slow, strict=True):
        [answer] = decoder.decode([request])
        assert answer.ids == expected
        assert answer.log_probs == pytest.approx(log_probs, abs=1e-4)
    assert any(SPACE.specials.eoi in expected for expected, _ in slow)


@pytest.mark.parametrize("at_once", [1, 6, 12])
def test_prompts_of_every_prefill_go_on_from_their_own_shared_beginning(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some share 8 ids, some 15 and some nothing, and what is left of them goes through the model in several parts."""
    beginnings = [[1, *PICTURE, 9], [1, *PICTURE, *PICTURE, 8, 7], [1]]
    endings = [[7, 10, 5], [11, 5], [12, 13, 14, 5]]
    config = DecodeConfig(mode="mixed", max_new_tokens=12, sampling=HOT)
    prompts = [[*beginning, *ending] for beginning in beginnings for ending in endings]
    asked = [Request(prompt=prompt, config=config, seed=seed) for seed, prompt in enumerate(prompts)]
    decoder = engine()
    alone = [decoder.decode([request])[0] for request in asked]
    monkeypatch.setattr(prefill, "PREFILL_AT_ONCE", at_once)
    together = decoder.decode(asked)
    assert ids(together) == ids(alone)
    for one, other in zip(together, alone, strict=True):
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-9)
