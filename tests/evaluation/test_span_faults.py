"""What is wrong with an image span: each fault alone, several at once, and none, in both layouts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.oracles.tiny import tiny_space
from tokenizers_vq.layout import GridLayout
from tokenizers_vq.token_space import TokenSpace
from unimodal.evaluation.span_faults import span_faults

SPACES = {
    "fixed": tiny_space(),
    "grid": replace(tiny_space(), layout=GridLayout(sizes=((1, 3), (2, 2), (3, 1), (2, 3)))),
}


def image_of(space: TokenSpace) -> list[int]:
    """A well-formed span."""
    size = space.layout.sizes[0]
    codes = [space.image_offset + number % 3 for number in range(size[0] * size[1])]
    return [space.specials.boi, *space.image_body(codes, size), space.specials.eoi]


def shares(space: TokenSpace, *answers: list[int]) -> tuple[float, float, float]:
    found = span_faults(answers, space).shares()
    return found["stray_text"], found["wrong_length"], found["no_end"]


@pytest.mark.parametrize("layout", ["fixed", "grid"])
def test_each_fault_is_counted_apart(layout: str) -> None:
    space = SPACES[layout]
    right, eos, text = image_of(space), space.specials.eos, space.text_size - 1
    code = space.image_offset
    assert shares(space, right, [*right, eos], [5, *right, 6, eos]) == (0, 0, 0)
    assert shares(space, [*right[:-2], text, *right[-2:]]) == (1, 0, 0)
    assert shares(space, [*right[:-2], right[-1]]) == (0, 1, 0)
    assert shares(space, [*right[:-1], code, right[-1]]) == (0, 1, 0)
    assert shares(space, right[:-1]) == shares(space, [*right[:-1], eos]) == (0, 0, 1)
    assert shares(space, [*right[:4], text]) == (1, 1, 1)
    assert shares(space, [text, eos], []) == (1, 1, 1), "an image was asked for"
    assert shares(space, right, right, right, [*right[:-1], text, right[-1]]) == (0.25, 0, 0)


def test_a_span_that_another_one_interrupts_has_no_end() -> None:
    space = SPACES["fixed"]
    right = image_of(space)
    found = span_faults([[*right[:3], *right]], space)
    assert (found.spans, found.stray_text, found.wrong_length, found.no_end) == (2, 0, 1, 1)
