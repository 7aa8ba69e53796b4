"""Token space: ids round-trip, and no two artefacts with different spaces are used together."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles.pictures import GRID_SPACE, SPACE
from tokenizers_vq.token_space import FixedLayout, GridLayout, ImageSpan, Specials, TokenSpace, TokenSpaceMismatch

CHANGES: dict[str, Any] = {
    "text_size": 101,
    "text_hash": "other",
    "codebook_size": 17,
    "image_hash": "other",
    "layout": FixedLayout(rows=4, columns=1),
    "specials": Specials(boi=50),
}

layouts = st.builds(FixedLayout, rows=st.integers(1, 64), columns=st.integers(1, 64)) | st.builds(
    GridLayout,
    sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5, unique=True).map(tuple),
)
spaces = st.builds(
    TokenSpace,
    text_size=st.integers(8, 10**6),
    text_hash=st.text(max_size=5),
    codebook_size=st.integers(2, 10**6),
    image_hash=st.text(max_size=5),
    layout=layouts,
    specials=st.builds(Specials, null=st.integers(7, 99)),
)


@given(space=spaces, data=st.data())
def test_codes_come_back_from_their_ids(space: TokenSpace, data: st.DataObject) -> None:
    codes = torch.tensor(data.draw(st.lists(st.integers(0, space.codebook_size - 1), max_size=9)), dtype=torch.long)
    ids = space.to_image_ids(codes)
    assert ((ids >= space.image_offset) & (ids < space.vocab_size)).all()
    assert torch.equal(space.to_codes(ids), codes)


@given(space=spaces)
def test_a_space_comes_back_from_json_with_the_same_fingerprint(space: TokenSpace) -> None:
    back = TokenSpace.from_dict(json.loads(json.dumps(space.to_dict())))
    assert back == space and back.fingerprint == space.fingerprint


def test_a_space_comes_back_from_its_file(tmp_path: Path) -> None:
    SPACE.save(tmp_path)
    assert TokenSpace.open(tmp_path) == SPACE
    assert json.loads((tmp_path / "token_space.json").read_text())["fingerprint"] == SPACE.fingerprint


def test_the_list_of_changes_above_covers_every_field() -> None:
    assert set(CHANGES) == {field.name for field in dataclasses.fields(TokenSpace) if field.compare}


def test_other_ends_are_kept_and_part_of_the_file_but_not_of_what_data_are(tmp_path: Path) -> None:
    chat = dataclasses.replace(SPACE, also_end=(9, 11))
    chat.save(tmp_path)
    back = TokenSpace.open(tmp_path)
    assert back.also_end == (9, 11) and back.ends == (SPACE.specials.eos, 9, 11)
    assert chat.fingerprint != SPACE.fingerprint
    chat.check_same(SPACE, "the model", "data/a")
    for bad in (100, -1):
        with pytest.raises(ValueError, match="ids that end an answer are text ids below 100"):
            dataclasses.replace(SPACE, also_end=(bad,))


@pytest.mark.parametrize("name", CHANGES)
def test_any_changed_field_changes_the_fingerprint_and_is_named_with_both_artefacts(name: str) -> None:
    changed = dataclasses.replace(SPACE, **{name: CHANGES[name]})
    assert changed.fingerprint != SPACE.fingerprint
    with pytest.raises(TokenSpaceMismatch, match=rf"^the model and data/a have .*: {name} is .+ and .+$"):
        SPACE.check_same(changed, "the model", "data/a")


def test_of_two_differences_the_first_is_named() -> None:
    changed = dataclasses.replace(SPACE, codebook_size=17, text_size=101)
    with pytest.raises(TokenSpaceMismatch, match="text_size is 100 and 101"):
        SPACE.check_same(changed, "a", "b")


def test_equal_spaces_are_used_together_without_complaint() -> None:
    SPACE.check_same(dataclasses.replace(SPACE), "a", "b")


@pytest.mark.parametrize("bad", [99, 0, 116, -1])
def test_an_id_that_is_no_image_code_is_refused_by_value(bad: int) -> None:
    with pytest.raises(ValueError, match=f"id {bad} is not an image code: those are 100 to 115"):
        SPACE.to_codes(torch.tensor([[100, bad]]))


def test_a_file_changed_by_hand_is_refused(tmp_path: Path) -> None:
    SPACE.save(tmp_path)
    file = tmp_path / "token_space.json"
    file.write_text(file.read_text().replace('"text_size": 100', '"text_size": 99'))
    with pytest.raises(ValueError, match=r"token_space\.json was changed by hand"):
        TokenSpace.open(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"token_space\.json is missing"):
        TokenSpace.open(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "null", "{}", '{"layout": 3}', "\xff"])
def test_a_file_that_holds_no_token_space_is_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "token_space.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"token_space\.json"):
        TokenSpace.open(tmp_path)


CHANGES_TO_NO_SPACE: list[dict[str, Any]] = [
    {"surprise": 1},
    {"text_size": 3},
    {"codebook_size": "9"},
    {"layout": {"rows": 2}},
    {"layout": {"kind": "spiral"}},
    {"layout": {"kind": "grid"}},
    {"layout": {"kind": "grid", "sizes": 5}},
]


@pytest.mark.parametrize("change", CHANGES_TO_NO_SPACE)
def test_values_that_are_no_token_space_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="token space"):
        TokenSpace.from_dict({**SPACE.to_dict(), **change})


@given(space=spaces)
def test_the_ids_of_a_layout_lie_between_text_and_codes_and_none_is_another(space: TokenSpace) -> None:
    own = []
    if isinstance(space.layout, GridLayout):
        own = [space.eol, *(space.side(length) for length in range(1, space.layout.max_side + 1))]
    assert own == list(range(space.text_size, space.image_offset))
    assert space.vocab_size == space.image_offset + space.codebook_size


def spans(space: TokenSpace, data: st.DataObject) -> tuple[tuple[int, int], list[int], list[int]]:
    """A size, ids of codes, and the whole span of such an image."""
    size = data.draw(st.sampled_from(space.layout.sizes))
    code = st.integers(space.image_offset, space.vocab_size - 1)
    ids = data.draw(st.lists(code, min_size=size[0] * size[1], max_size=size[0] * size[1]))
    return size, ids, [space.specials.boi, *space.image_body(ids, size), space.specials.eoi]


SMALL = [SPACE, GRID_SPACE, dataclasses.replace(SPACE, text_size=8, layout=GridLayout(sizes=((2, 5), (3, 3), (4, 2))))]
"""The spans of the last one's sizes are of the same length."""


@given(space=st.sampled_from(SMALL), data=st.data())
def test_an_image_comes_back_from_its_span_wherever_it_stands(space: TokenSpace, data: st.DataObject) -> None:
    size, ids, span = spans(space, data)
    anything = st.lists(st.integers(0, space.vocab_size - 1), max_size=4)
    before, after = data.draw(anything), data.draw(anything)
    assert len(span) == space.layout.span_of(size)
    found = space.read_image([*before, *span, *after], len(before))
    assert found == ImageSpan(size, ids, len(before) + len(span))


def test_a_grid_tells_its_size_and_ends_each_row_but_the_last() -> None:
    a, b, c, d = range(104, 108)
    assert GRID_SPACE.image_body([a, b, c, d], (2, 2)) == [102, 102, a, b, 100, c, d]
    assert GRID_SPACE.image_body([a, b, c], (1, 3)) == [101, 103, a, b, c]
    assert GRID_SPACE.image_body([a, b, c], (3, 1)) == [103, 101, a, 100, b, 100, c]


@settings(max_examples=20, deadline=None)
@given(space=st.sampled_from(SMALL), data=st.data())
def test_a_span_with_any_one_token_changed_is_another_whole_image_or_none(
    space: TokenSpace, data: st.DataObject
) -> None:
    _, _, span = spans(space, data)
    for place in range(len(span)):
        for token in range(-1, space.vocab_size + 2):
            changed = [*span[:place], token, *span[place + 1 :]]
            found = space.read_image(changed, 0)
            is_code = span[place] >= space.image_offset and space.image_offset <= token < space.vocab_size
            assert (found is not None) == (is_code or token == span[place])
            if found is not None:
                body = space.image_body(found.ids, found.size)
                assert [space.specials.boi, *body, space.specials.eoi] == changed


@pytest.mark.parametrize("space", SMALL)
def test_a_span_cut_short_anywhere_and_a_place_outside_are_no_image(space: TokenSpace) -> None:
    for size in space.layout.sizes:
        body = space.image_body([space.image_offset] * (size[0] * size[1]), size)
        span = [space.specials.boi, *body, space.specials.eoi]
        assert space.read_image(span, 0) is not None
        assert [space.read_image(span[:end], 0) for end in range(len(span))] == [None] * len(span)
        places = [place for place in range(-2 * len(span), 2 * len(span)) if place]
        assert [space.read_image(span, place) for place in places] == [None] * len(places)


def test_an_image_of_a_size_that_the_layout_lacks_or_with_other_codes_is_not_written() -> None:
    with pytest.raises(ValueError, match="an image of 2 x 3 codes does not exist in the grid layout"):
        GRID_SPACE.image_body([104] * 6, (2, 3))
    with pytest.raises(ValueError, match="an image of 4 x 1 codes does not exist in the fixed layout"):
        SPACE.image_body([100] * 4, (4, 1))
    for space in (SPACE, GRID_SPACE):
        with pytest.raises(ValueError, match="an image of 2 x 2 has 4 codes, got 5"):
            space.image_body([space.image_offset] * 5, (2, 2))
