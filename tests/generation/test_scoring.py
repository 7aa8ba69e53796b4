"""Scoring: what was recorded while sampling comes out of one forward pass again."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.generation.test_engine import CONFIGS, HOT, NAMES, SPACES, engine, mixed_requests, prompts, requests
from tokenizers_vq.token_space import TokenSpace
from unimodal.generation.modality import check_spans
from unimodal.generation.requests import DecodeConfig, Request


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("settings", CONFIGS.values(), ids=NAMES)
def test_recomputed_log_probabilities_are_those_recorded_while_sampling(
    settings: dict[str, Any], space: TokenSpace
) -> None:
    config, decoder = DecodeConfig(max_new_tokens=34, **settings), engine(space=space)
    asked = requests(config, space)
    answers = decoder.decode(asked)
    scores = decoder.score(asked, [answer.ids for answer in answers])
    for answer, found in zip(answers, scores, strict=True):
        torch.testing.assert_close(found, torch.tensor(answer.log_probs, dtype=torch.float64), rtol=1e-10, atol=1e-10)
        assert config.sampling.temperature == 0 or found.sum() < 0


def test_the_probabilities_of_all_answers_sum_to_one() -> None:
    decoder, space = engine(), SPACES["fixed"]
    config = DecodeConfig(mode="text", max_new_tokens=2, sampling=HOT)
    request, eos = Request(prompt=[1, 9, 5], config=config), space.specials.eos
    said = [*range(7, space.text_size)]
    every = [[eos]] + [[a, b] for a in said for b in [*said, eos]]
    total = sum(math.exp(one.sum().item()) for one in decoder.score([request] * len(every), every))
    assert total == pytest.approx(1, abs=1e-5)


def test_what_cannot_be_said_has_no_probability() -> None:
    decoder, space = engine(), SPACES["fixed"]
    boi, eoi, code = space.specials.boi, space.specials.eoi, space.image_offset
    request = Request(prompt=prompts()[0], config=DecodeConfig(max_new_tokens=20))
    for wrong in ([code], [boi, code, eoi], [boi, 9], [space.specials.pad]):
        assert check_spans(wrong, space)[1] or wrong == [space.specials.pad]
        assert decoder.score([request], [wrong])[0].min() == -math.inf


def test_nothing_can_be_said_after_the_end_or_past_the_room() -> None:
    decoder, eos = engine(), SPACES["fixed"].specials.eos
    request = Request(prompt=prompts()[0], config=DecodeConfig(mode="text", max_new_tokens=3))
    [ended, long] = decoder.score([request] * 2, [[9, eos, 9], [9, 9, 9, 9, 9]])
    assert [value == -math.inf for value in ended.tolist()] == [False, False, True]
    assert [value == -math.inf for value in long.tolist()] == [False, False, False, True, True]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [([], "answer of 0 tokens"), ([9] * 62, "prompt of 3 it may have 1 to 61"), ([9, 24], "an answer holds 9 to 24")],
)
def test_answers_that_cannot_be_scored_are_refused(answer: list[int], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        engine().score([Request(prompt=[1, 9, 5], config=DecodeConfig())], [answer])


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_answers_are_scored_together_and_as_each_alone(space: TokenSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    """60 answers of all kinds to five prompts take a few forward passes, not one each."""
    decoder, asked = engine(space=space), mixed_requests(space, 60)
    answers = [answer.ids for answer in decoder.decode(asked)]
    passes: list[torch.Size] = []
    plain = type(decoder.model).forward

    def counting(model: Any, tokens: torch.Tensor, *arguments: Any, **settings: Any) -> torch.Tensor:
        passes.append(tokens.shape)
        return plain(model, tokens, *arguments, **settings)

    monkeypatch.setattr(type(decoder.model), "forward", counting)
    together = decoder.score(asked, answers)
    assert len(passes) <= 3
    for request, answer, found in zip(asked, answers, together, strict=True):
        torch.testing.assert_close(decoder.score([request], [answer])[0], found, rtol=1e-10, atol=1e-10)
