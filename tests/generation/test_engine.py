"""The engine: batched, cached decoding gives what one slow row at a time gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.oracles.slow_generation import decode_slowly
from tests.oracles.tiny import tiny_space, tiny_transformer
from unimodal.generation.engine import WORTH_SHARING, DecodeConfig, Engine, shared_length
from unimodal.generation.grammar import check_spans
from unimodal.generation.sampling import SamplingConfig
from unimodal.model.transformer import Transformer

SPACE = tiny_space()
CONTEXT = 48
PROMPTS = [[1, 9, 5], [1, 3, 17, 18, 19, 20, 4, 8, 12, 5], [1, 6, 5], [1, 7, 8, 9, 10, 11, 5], [1, 15, 14, 5]]
SEEDS = [11, 12, 13, 14, 15]
CONFIGS: dict[str, dict[str, Any]] = {
    "text": {"mode": "text"},
    "image": {"mode": "image"},
    "mixed": {"mode": "mixed"},
    "guided image": {"mode": "image", "guidance": 3.0},
    "guided mixed": {"mode": "mixed", "guidance": 0.5, "sampling": SamplingConfig(temperature=1.5)},
    "greedy": {"mode": "mixed", "sampling": SamplingConfig(temperature=0)},
    "cut": {"mode": "mixed", "guidance": 2.0, "sampling": SamplingConfig(top_k=6, top_p=0.9)},
}


def engine(dtype: torch.dtype = torch.float64) -> Engine:
    return Engine(tiny_transformer(SPACE.vocab_size, dtype=dtype, max_length=CONTEXT), SPACE)


class Spy:
    """Notes the shape of the tokens of every forward pass."""

    def __init__(self, transformer: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shapes: list[tuple[int, ...]] = []
        original = transformer.features

        def features(tokens: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
            self.shapes.append(tuple(tokens.shape))
            return original(tokens, *arguments, **named)

        monkeypatch.setattr(transformer, "features", features)


@pytest.mark.parametrize("settings", CONFIGS.values(), ids=CONFIGS.keys())
def test_cached_batches_decode_as_rows_without_a_cache(settings: dict[str, Any]) -> None:
    config, decoder = DecodeConfig(max_new_tokens=30, **settings), engine()
    found = decoder.decode(PROMPTS, SEEDS, config)
    slow = [decode_slowly(decoder.transformer, SPACE, p, s, config) for p, s in zip(PROMPTS, SEEDS, strict=True)]
    assert found == slow
    if config.mode != "text":
        spans = [check_spans(answer, SPACE) for answer in found]
        assert sum(count for count, _ in spans) > 1 and sum(bad for _, bad in spans) == 0


@pytest.mark.parametrize("settings", CONFIGS.values(), ids=CONFIGS.keys())
def test_a_batch_equals_its_rows_one_by_one(settings: dict[str, Any]) -> None:
    config, decoder = DecodeConfig(max_new_tokens=30, **settings), engine(torch.float32)
    together = decoder.decode(PROMPTS, SEEDS, config)
    assert together == [decoder.decode([p], [s], config)[0] for p, s in zip(PROMPTS, SEEDS, strict=True)]
    assert len({tuple(answer) for answer in together}) > 1


@pytest.mark.parametrize("mode", ["image", "mixed"])
def test_guidance_of_scale_one_runs_no_second_context_and_other_scales_change_pictures(
    mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = engine()
    plain = decoder.decode(PROMPTS, SEEDS, DecodeConfig(mode=mode))
    guided = decoder.decode(PROMPTS, SEEDS, DecodeConfig(mode=mode, guidance=4.0))
    spy = Spy(decoder.transformer, monkeypatch)
    assert decoder.decode(PROMPTS, SEEDS, DecodeConfig(mode=mode, guidance=1.0)) == plain != guided
    assert (len(PROMPTS), 3) not in spy.shapes


def test_guidance_acts_inside_images_alone() -> None:
    decoder = engine()
    config = {"mode": "text", "max_new_tokens": 20}
    assert decoder.decode(PROMPTS, SEEDS, DecodeConfig(guidance=5.0, **config)) == decoder.decode(
        PROMPTS, SEEDS, DecodeConfig(**config)
    )


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_prompt_is_prefilled_once_even_when_the_answer_holds_images(
    guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = engine()
    spy = Spy(decoder.transformer, monkeypatch)
    answers = decoder.decode(PROMPTS, SEEDS, DecodeConfig(max_new_tokens=30, guidance=guidance))
    assert max(check_spans(answer, SPACE)[0] for answer in answers) >= 2
    longest = max(map(len, PROMPTS))
    wide = [shape for shape in spy.shapes if shape[1] > 1]
    assert wide == ([(5, 3)] if guidance != 1 else []) + [(5, longest)]


@pytest.mark.parametrize("limit", [1, 2, 7, 12])
def test_rows_end_at_max_new_tokens(limit: int) -> None:
    for mode in ("text", "mixed"):
        answers = engine().decode(PROMPTS, SEEDS, DecodeConfig(mode=mode, max_new_tokens=limit))
        assert all(1 <= len(answer) <= limit for answer in answers)
        assert all(check_spans(answer, SPACE)[1] == 0 for answer in answers)


@pytest.mark.parametrize("missing", [0, 1])
def test_a_drawing_without_room_is_refused_and_one_with_room_is_whole(missing: int) -> None:
    config = DecodeConfig(mode="image", max_new_tokens=SPACE.layout.span + 1 - missing)
    if missing:
        with pytest.raises(ValueError, match="an image and its end take"):
            engine().decode(PROMPTS, SEEDS, config)
        return
    answers = engine().decode(PROMPTS, SEEDS, config)
    assert all(check_spans(answer, SPACE) == (1, 0) for answer in answers)


def test_rows_end_where_the_context_ends_each_for_itself() -> None:
    prompts = [[1] + [9] * (CONTEXT - 4), [1] + [9] * (CONTEXT - 2), [1, 9, 5]]
    answers = engine().decode(prompts, [0, 1, 2], DecodeConfig(mode="mixed", max_new_tokens=500))
    for prompt, answer in zip(prompts, answers, strict=True):
        assert len(prompt) + len(answer) == CONTEXT or answer[-1] == SPACE.specials.eos
        assert check_spans(answer, SPACE)[1] == 0


def test_without_the_grammar_a_model_that_never_learned_makes_malformed_images() -> None:
    config = DecodeConfig(mode="image", max_new_tokens=40, constrained=False)
    answers = engine().decode(PROMPTS * 4, list(range(20)), config)
    assert sum(check_spans(answer, SPACE)[1] for answer in answers) > 0
    assert not any(SPACE.specials.pad in answer for answer in answers)


@pytest.mark.parametrize(("prompt", "reason"), [([], "empty"), ([1] * CONTEXT, f"{CONTEXT} tokens leaves no room")])
def test_prompts_that_cannot_be_answered_are_refused(prompt: list[int], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        engine().decode([[1, 9, 5], prompt], [0, 1], DecodeConfig())


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"guidance": -1.0}, "guidance"),
        ({"guidance": float("nan")}, "guidance"),
        ({"guidance": float("inf")}, "guidance"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        DecodeConfig(**settings)


PICTURES = [[1, 3, 16 + code, 17, 18, 19, 4] for code in range(2)]
ASKED = [[*picture, 7 + question, *[9] * (question % 3), 5] for question in range(4) for picture in PICTURES]


@pytest.mark.parametrize("settings", CONFIGS.values(), ids=CONFIGS.keys())
def test_a_shared_prefix_changes_no_answer(settings: dict[str, Any]) -> None:
    config, decoder = DecodeConfig(max_new_tokens=20, **settings), engine()
    assert shared_length(ASKED) == 7
    seeds = list(range(len(ASKED)))
    found = decoder.decode(ASKED, seeds, config)
    assert found == [decode_slowly(decoder.transformer, SPACE, p, s, config) for p, s in zip(ASKED, seeds, strict=True)]
    assert len({tuple(answer) for answer in found}) > 1


def test_a_shared_prefix_runs_through_the_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = engine()
    spy = Spy(decoder.transformer, monkeypatch)
    decoder.decode(ASKED, list(range(len(ASKED))), DecodeConfig(mode="text", max_new_tokens=1))
    assert spy.shapes[:2] == [(2, 7), (8, 4)]


@given(prompts=st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=7), min_size=1, max_size=6))
def test_the_shared_length_is_the_one_that_saves_most(prompts: list[list[int]]) -> None:
    def saves(length: int) -> int:
        return (len(prompts) - len({tuple(prompt[:length]) for prompt in prompts})) * length

    best = max(range(min(map(len, prompts))), key=saves)
    worth = saves(best) > WORTH_SHARING * sum(map(len, prompts))
    assert saves(shared_length(prompts)) == (saves(best) if worth else 0)
