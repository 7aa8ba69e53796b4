"""Drafts change no answer: id for id what plain decoding gives, in fewer passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.generation.test_engine import CONFIGS, CONTEXT, NAMES, SPACES, ids, mixed_requests, requests
from tests.oracles.slow_generation import noise_of
from tests.oracles.tiny import tiny_model
from tokenizers_vq.token_space import TokenSpace
from unimodal.generation.drafts.above import CodeAbove
from unimodal.generation.drafts.ahead import states_ahead
from unimodal.generation.drafts.base import Drafter, Drafting, Guesses, Pass
from unimodal.generation.drafts.jacobi import Jacobi
from unimodal.generation.drafts.multi_token import MultiTokenDrafter
from unimodal.generation.drafts.prompt_lookup import PromptLookup, latest
from unimodal.generation.drafts.usual import usual_drafting
from unimodal.generation.engine import Engine
from unimodal.generation.guidance import GuidanceConfig
from unimodal.generation.modality import Kind, ModalityMachine, ModalityState
from unimodal.generation.requests import DecodeConfig, Request
from unimodal.model.config import MultiTokenConfig
from unimodal.model.heads.multi_token import DEPTHS


class Known:
    """Guesses the very answers; with `wrong` every so-manieth token is another one."""

    def __init__(self, answers: Sequence[Sequence[int]], wrong: int = 0) -> None:
        self.answers, self.wrong = answers, wrong

    def __call__(self, done: Pass, window: int) -> Guesses:
        """By the number of the request."""
        found = torch.zeros(len(done.taken), window, dtype=torch.int64)
        for row, (number, step) in enumerate(zip(done.batch.numbers, done.batch.step_count.tolist(), strict=True)):
            coming = list(self.answers[number][step : step + window])
            for index in range(len(coming)):
                if self.wrong and (step + index) % self.wrong == 0:
                    coming[index] = (coming[index] + 1) % done.batch.space.vocab_size
            found[row, : len(coming)] = torch.tensor(coming)
        return Guesses(found, torch.ones_like(found).bool())


class Counted:
    """How many passes an engine makes while it decodes."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passes = 0
        original = engine.model.forward

        def forward(tokens: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
            self.passes += named.get("cache") is not None
            return original(tokens, *given, **named)

        monkeypatch.setattr(engine.model, "forward", forward)


DRAFTERS: dict[str, tuple[Drafter, ...]] = {
    "jacobi": (Jacobi(),),
    "above": (CodeAbove(),),
    "look-up": (PromptLookup(),),
    "all": (PromptLookup(), Jacobi(), CodeAbove()),
}


def engines(space: TokenSpace, drafting: Drafting, **changes: Any) -> tuple[Engine, Engine]:
    """Plain, and with drafts, of one model."""
    model = tiny_model(vocab_size=space.vocab_size, max_length=CONTEXT, **changes)
    return Engine(model, space), Engine(model, space, drafting=drafting)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("settings", CONFIGS.values(), ids=NAMES)
@pytest.mark.parametrize("name", DRAFTERS)
@pytest.mark.parametrize("window", [1, 6])
def test_answers_are_those_of_plain_decoding(
    settings: dict[str, Any], space: TokenSpace, name: str, window: int
) -> None:
    asked = requests(DecodeConfig(max_new_tokens=34, **settings), space)
    plain, drafting = engines(space, Drafting(DRAFTERS[name], window))
    wanted, found = plain.decode(asked), drafting.decode(asked)
    assert ids(found) == ids(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-9)
        assert one.finish == other.finish


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("kind", DEPTHS)
@pytest.mark.parametrize(("depth", "window"), [(1, 1), (1, 3), (3, 3), (3, 2)])
def test_answers_with_multi_token_heads_are_those_of_plain_decoding(
    space: TokenSpace, kind: Any, depth: int, window: int
) -> None:
    changes = {"multi_token": MultiTokenConfig(depth=depth, kind=kind)}
    plain, _ = engines(space, Drafting(), **changes)
    drafting = Engine(plain.model, space, drafting=usual_drafting(plain.model, window))
    assert isinstance(drafting.drafting.drafters[0], MultiTokenDrafter)
    asked = mixed_requests(space, 24, seed=window)
    assert ids(drafting.decode(asked, rows=7)) == ids(plain.decode(asked))


@pytest.mark.parametrize("kind", DEPTHS)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_what_a_multi_token_head_guesses_is_what_its_distribution_takes(kind: Any, guidance: float) -> None:
    """By passes over whole sequences without a cache: at the first guesses inside an image."""
    space = SPACES["fixed"]
    config = DecodeConfig(mode="image", max_new_tokens=8, guidance=GuidanceConfig(scale=guidance))
    plain, _ = engines(space, Drafting(), multi_token=MultiTokenConfig(depth=1, kind=kind))
    noted: list[tuple[list[int], Guesses, torch.Tensor, int]] = []

    class Noting(MultiTokenDrafter):
        def __call__(self, done: Pass, window: int) -> Guesses:
            found = super().__call__(done, window)
            if done.batch.state.in_image[0] and done.batch.state.drawn[0] >= 1:
                answer = done.batch.out[0, : done.batch.step_count[0]].tolist()
                noted.append((answer, found, self.logits, int(done.batch.num_sampled[0])))
            return found

        def _logits(self, done: Pass, out: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
            self.logits = super()._logits(done, out, last)
            return self.logits

    head = plain.model.multi_token_head
    assert head is not None
    drafting = Engine(plain.model, space, drafting=Drafting((Noting(head),), 1))
    request = requests(config, space)[0]
    drafting.decode([request])
    answer, guesses, logits, number = noted[0]
    specials = space.specials

    def ahead(context: Sequence[int]) -> torch.Tensor:
        """Logits of the token after the next, from one place before the last token."""
        tokens = torch.tensor([context])
        known = plain.model.trunk.embedding(tokens.roll(-1))
        return plain.model.token_head(head(plain.model(tokens), [known])[0])[0, -2]

    with torch.no_grad():
        full, null = ahead([*request.prompt, *answer]), ahead([specials.bos, specials.null, specials.sep, *answer])
    wanted = null + guidance * (full - null) if guidance != 1 else full
    torch.testing.assert_close(logits[0], wanted)
    noise = torch.tensor(noise_of(request.seed, number + 1, space.vocab_size)[number])
    codes = wanted[space.image_offset :].softmax(-1) / noise[space.image_offset :]
    assert int(guesses.ids[0, 0]) == space.image_offset + int(codes.argmax())


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize(("rows", "sync_every"), [(1, 1), (5, 1), (8, 3), (64, 7)])
def test_a_queue_of_mixed_requests_is_answered_alike(space: TokenSpace, rows: int, sync_every: int) -> None:
    asked = mixed_requests(space, 40)
    plain, drafting = engines(space, Drafting(DRAFTERS["all"], 4))
    assert ids(drafting.decode(asked, rows=rows, sync_every=sync_every)) == ids(plain.decode(asked))


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("wrong", [0, 3])
def test_right_guesses_save_passes_and_wrong_ones_change_nothing(
    space: TokenSpace, wrong: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = requests(DecodeConfig(max_new_tokens=30, mode="mixed"), space)
    plain, _ = engines(space, Drafting())
    answers = plain.decode(asked)
    known = Engine(plain.model, space, drafting=Drafting((Known(ids(answers), wrong),), 4))
    counted = Counted(known, monkeypatch)
    assert ids(known.decode(asked, rows=1)) == ids(answers)
    length = sum(len(answer.ids) for answer in answers)
    assert counted.passes < (0.6 if wrong else 0.45) * length


def test_a_draft_that_is_right_behind_one_that_is_wrong_is_not_taken() -> None:
    space = SPACES["fixed"]
    asked = requests(DecodeConfig(max_new_tokens=30, mode="text"), space)
    plain, _ = engines(space, Drafting())
    answers = plain.decode(asked)
    late = [
        [answer[0], *[(token + 1) % space.text_size for token in answer[1:2]], *answer[2:]] for answer in ids(answers)
    ]
    known = Engine(plain.model, space, drafting=Drafting((Known(late),), 5))
    assert ids(known.decode(asked)) == ids(answers)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_looking_ahead_is_what_the_machine_comes_to(space: TokenSpace) -> None:
    """Along the answers of a model, at each of their tokens."""
    machine, window = ModalityMachine(space), 5
    plain, _ = engines(space, Drafting())
    followed = 0
    for answer in ids(plain.decode(requests(DecodeConfig(max_new_tokens=40, mode="mixed"), space))):
        state = machine.start([Kind.MIXED], [None])
        for index, token in enumerate(answer):
            coming = (answer[index:] + [space.specials.pad] * window)[:window]
            ahead = states_ahead(machine, state, torch.tensor([coming]))
            walked = state
            for place in range(window):
                if not ahead.follows[0, place]:
                    break
                assert ahead.drafts[0, place] == coming[place]
                walked = machine.advance(walked, torch.tensor([coming[place]]))
                assert _same(walked, ahead.states.select(torch.tensor([place + 1])))
                followed += 1
            state = machine.advance(state, torch.tensor([token]))
    assert followed > 100


def _same(one: ModalityState, other: ModalityState) -> bool:
    names = ("kind", "rows", "columns", "drawn", "in_image", "done")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


def test_drafts_stop_before_the_end_of_an_image_and_of_an_answer() -> None:
    space = SPACES["fixed"]
    machine = ModalityMachine(space)
    state = machine.advance(machine.start([Kind.MIXED], [None]), torch.tensor([space.specials.boi]))
    codes = torch.full((1, space.layout.span), space.image_offset)
    follows = states_ahead(machine, state, codes).follows[0].tolist()
    assert follows == [True] * (space.layout.span - 2) + [False] * 2
    text = machine.start([Kind.MIXED], [None])
    special = torch.tensor([[space.specials.eos, space.specials.boi, space.specials.pad, space.image_offset]])
    assert not states_ahead(machine, text, special).follows.any()


def test_look_up_finds_the_latest_place_where_the_last_two_ids_stood() -> None:
    rows = torch.tensor([[5, 6, 7, 5, 6, 8, 5, 6], [1, 2, 3, 4, 5, 6, 7, 8], [-1, -1, 9, 9, 9, 0, 0, 0]])
    assert latest(rows, torch.tensor([8, 8, 5])).tolist() == [5, 0, 4]


def test_requests_that_repeat_themselves_are_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A greedy model that goes round in circles is read ahead by its own answer."""
    space = SPACES["fixed"]
    asked = [Request(prompt=[1, 9, 5], config=DecodeConfig(mode="text", max_new_tokens=48), seed=1)]
    asked = [
        replace(one, config=replace(one.config, sampling=replace(one.config.sampling, temperature=0))) for one in asked
    ]
    plain, drafting = engines(space, Drafting((PromptLookup(),), 4))
    counted = Counted(drafting, monkeypatch)
    answer = drafting.decode(asked)[0].ids
    passes = counted.passes
    assert answer == plain.decode(asked)[0].ids
    assert len(answer) > 30 and len(set(answer[10:])) < 8, "the model goes round in circles"
    assert passes < len(answer) - 5
