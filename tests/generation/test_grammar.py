"""The modality state machine: whatever the logits, an image span is exactly right."""

from __future__ import annotations

import re
from random import Random

import pytest
import torch

from tests.oracles.slow_generation import legal_tokens
from tests.oracles.tiny import tiny_space
from tokenizers_vq.layout import GridLayout, Size
from tokenizers_vq.token_space import TokenSpace
from unimodal.generation.modality import OUTSIDE, Kind, ModalityMachine, ModalityState, check_spans
from unimodal.generation.settings import MODES, Mode

SPACE = tiny_space()
CODES = 4
WHOLE_IMAGE = f"bc{{{CODES}}}e"
LANGUAGE = {"text": "t*q?", "mixed": f"(t|{WHOLE_IMAGE})*q?", "image": f"({WHOLE_IMAGE}|q)"}
GRID = TokenSpace(
    text_size=16, text_hash="t", codebook_size=8, image_hash="i", layout=GridLayout(sizes=((1, 3), (2, 2), (3, 1)))
)


def letters(ids: list[int]) -> str:
    """b boi, c code, e eoi, q eos, t text, x any other special."""
    specials = SPACE.specials
    named = {specials.boi: "b", specials.eoi: "e", specials.eos: "q"}
    others = {specials.pad: "x", specials.bos: "x", specials.sep: "x", specials.null: "x"}
    return "".join({**named, **others}.get(i, "c" if i >= SPACE.image_offset else "t") for i in ids)


def begin(grammar: ModalityMachine, kind: Kind, rows: int = 1, size: Size | None = None) -> ModalityState:
    """Rows that all want the same."""
    return grammar.start([kind] * rows, [size] * rows)


def allowed(grammar: ModalityMachine, state: ModalityState, room: torch.Tensor) -> torch.Tensor:
    """bool (B, V)."""
    return grammar.bias(state, room) == 0


def random_walk(grammar: ModalityMachine, kind: Kind, room: torch.Tensor, size: Size | None = None) -> list[list[int]]:
    """Rows of tokens drawn evenly from what is allowed, until each is done or full."""
    state = begin(grammar, kind, len(room), size)
    rows: list[list[int]] = [[] for _ in room]
    for step in range(int(room.max())):
        legal = allowed(grammar, state, room - step)
        assert legal.any(-1).all(), "a row has no legal token"
        tokens = torch.multinomial(legal.double(), 1).squeeze(-1)
        for row, token in enumerate(tokens.tolist()):
            if not state.done[row] and step < room[row]:
                rows[row].append(token)
        state = grammar.advance(state, tokens)
    return rows


@pytest.mark.parametrize("mode", MODES)
def test_random_answers_are_words_of_the_language(mode: Mode) -> None:
    room = torch.randint(1, 40, (200,))
    walks = random_walk(ModalityMachine(SPACE), OUTSIDE[mode], room)
    for answer, limit in zip(walks, room.tolist(), strict=True):
        word = letters(answer)
        assert re.fullmatch(LANGUAGE[mode], word), word
        assert len(word) == limit or word.endswith("e" if mode == "image" and "b" in word else "q")


@pytest.mark.parametrize(("space", "wanted"), [(SPACE, None), (GRID, None), (GRID, (2, 2)), (GRID, (3, 1))])
@pytest.mark.parametrize("mode", MODES)
def test_what_is_allowed_is_what_the_answer_so_far_says(mode: Mode, space: TokenSpace, wanted: Size | None) -> None:
    grammar, room = ModalityMachine(space), 25
    for answer in random_walk(grammar, OUTSIDE[mode], torch.full((50,), room), wanted):
        state = begin(grammar, OUTSIDE[mode], size=wanted)
        for index, token in enumerate(answer):
            legal = allowed(grammar, state, torch.tensor([room - index]))[0]
            expected = legal_tokens(answer[:index], space, mode, room - index, wanted)
            assert set(legal.nonzero().flatten().tolist()) == expected
            state = grammar.advance(state, torch.tensor([token]))


@pytest.mark.parametrize("mode", ["image", "mixed"])
def test_no_image_is_begun_that_would_not_fit_with_its_end(mode: Mode) -> None:
    grammar, boi, fits = ModalityMachine(SPACE), SPACE.specials.boi, SPACE.layout.span + 1
    legal = allowed(grammar, begin(grammar, OUTSIDE[mode], 2), torch.tensor([fits - 1, fits]))
    assert legal[:, boi].tolist() == [False, True]


def test_an_image_row_is_done_with_its_image_and_a_mixed_row_goes_on() -> None:
    eoi = torch.tensor([SPACE.specials.eoi])
    grammar = ModalityMachine(SPACE)
    for kind, done in ((Kind.IMAGE, True), (Kind.MIXED, False)):
        state = grammar.advance(begin(grammar, kind), torch.tensor([SPACE.specials.boi]))
        assert bool(state.in_image)
        state = grammar.advance(state, eoi)
        assert (bool(state.in_image), bool(state.done)) == (False, done)


def test_without_rules_everything_but_padding_is_allowed_and_only_eos_ends() -> None:
    grammar = ModalityMachine(SPACE)
    legal = allowed(grammar, begin(grammar, Kind.FREE), torch.tensor([1]))
    assert legal.sum() == SPACE.vocab_size - 1 and not legal[0, SPACE.specials.pad]
    tokens = torch.tensor([SPACE.specials.eoi, SPACE.specials.eos])
    assert grammar.advance(begin(grammar, Kind.FREE, 2), tokens).done.tolist() == [False, True]


@pytest.mark.parametrize("space", [SPACE, GRID], ids=["fixed", "grid"])
def test_the_share_of_an_image_that_is_drawn_grows_from_nothing_to_all(space: TokenSpace) -> None:
    grammar = ModalityMachine(space)
    [answer] = random_walk(grammar, Kind.IMAGE, torch.tensor([20]))
    state, shares = begin(grammar, Kind.IMAGE), []
    for token in answer:
        state = grammar.advance(state, torch.tensor([token]))
        shares += [round(state.progress.item(), 6)] if token >= space.image_offset else []
    assert shares == [round((index + 1) / len(shares), 6) for index in range(len(shares))]


@pytest.mark.parametrize("seed", range(30))
def test_span_counts_equal_those_of_regular_expressions(seed: int) -> None:
    random = Random(seed)
    pieces: list[list[int]] = []
    for _ in range(60):
        length = random.choice([CODES] * 3 + [1, 3, 5])
        codes = [random.randrange(SPACE.image_offset, SPACE.vocab_size) for _ in range(length)]
        whole = [SPACE.specials.boi, *codes, SPACE.specials.eoi]
        pieces.append(
            random.choice([whole, whole, whole[1:], whole[:-1], codes, [random.randrange(SPACE.image_offset)]])
        )
    ids = [i for piece in pieces for i in piece]
    word = letters(ids)
    spans, good = len(re.findall("bc*|c+", word)), len(re.findall(WHOLE_IMAGE, word))
    assert spans > good > 0
    assert check_spans(ids, SPACE) == (spans, spans - good)


@pytest.mark.parametrize(
    ("word", "counts"),
    [
        ("", (0, 0)),
        ("tq", (0, 0)),
        ("bcccce", (1, 0)),
        ("b", (1, 1)),
        ("bccce", (1, 1)),
        ("bccccce", (1, 1)),
        ("bcccc", (1, 1)),
        ("cccce", (1, 1)),
        ("bbcccce", (2, 1)),
        ("bcccceccq", (2, 1)),
        ("bcctce", (2, 2)),
    ],
)
def test_span_counts_of_sequences_one_can_check_by_eye(word: str, counts: tuple[int, int]) -> None:
    specials = SPACE.specials
    ids = {"b": specials.boi, "e": specials.eoi, "q": specials.eos, "t": 9, "c": SPACE.image_offset}
    assert check_spans([ids[letter] for letter in word], SPACE) == counts
