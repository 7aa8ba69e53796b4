"""Scoring of guided answers that no rules bind: guidance acts from after boi up to and including eoi."""

from __future__ import annotations

import pytest
import torch

from tests.generation.test_engine import HOT, SPACE, engine
from unimodal.generation.guidance import GuidanceConfig
from unimodal.generation.requests import DecodeConfig, Request

BOI, EOI = SPACE.specials.boi, SPACE.specials.eoi


@pytest.mark.parametrize("guidance", [GuidanceConfig(scale=3.0), GuidanceConfig(scale=2.0, image_scale=0.5)])
def test_the_end_of_an_image_has_the_probability_that_it_was_drawn_with(guidance: GuidanceConfig) -> None:
    """With rules nothing else may follow the last code, so only an answer without them tells."""
    config = DecodeConfig(max_new_tokens=40, guidance=guidance, sampling=HOT, constrained=False)
    prompt = [1, BOI, 16, 17, 18, 19, EOI, 9, 5]
    asked = [Request(prompt=prompt, config=config, seed=seed) for seed in range(40)]
    decoder = engine()
    answers = decoder.decode(asked)
    closed = 0
    for answer, found in zip(answers, decoder.score(asked, [answer.ids for answer in answers]), strict=True):
        torch.testing.assert_close(found, torch.tensor(answer.log_probs, dtype=torch.float64), rtol=1e-10, atol=1e-10)
        ends = [place for place, token in enumerate(answer.ids) if token == EOI and BOI in answer.ids[:place]]
        closed += len(ends)
        assert all(answer.log_probs[place] < 0 for place in ends)
    assert closed > 3
