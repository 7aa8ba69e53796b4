"""Token space: ids round-trip, and no two artefacts with different spaces are used together."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.oracles.pictures import SPACE
from tokenizers_vq.token_space import FixedLayout, Specials, TokenSpace, TokenSpaceMismatch

CHANGES: dict[str, Any] = {
    "text_size": 101,
    "text_hash": "other",
    "codebook_size": 17,
    "image_hash": "other",
    "layout": FixedLayout(rows=4, columns=1),
    "specials": Specials(boi=50),
}

spaces = st.builds(
    TokenSpace,
    text_size=st.integers(8, 10**6),
    text_hash=st.text(max_size=5),
    codebook_size=st.integers(2, 10**6),
    image_hash=st.text(max_size=5),
    layout=st.builds(FixedLayout, rows=st.integers(1, 64), columns=st.integers(1, 64)),
    specials=st.builds(Specials, null=st.integers(7, 99)),
)


@given(space=spaces, data=st.data())
def test_codes_come_back_from_their_ids(space: TokenSpace, data: st.DataObject) -> None:
    codes = torch.tensor(data.draw(st.lists(st.integers(0, space.codebook_size - 1), max_size=9)), dtype=torch.long)
    ids = space.to_image_ids(codes)
    assert ((ids >= space.text_size) & (ids < space.vocab_size)).all()
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
    assert set(CHANGES) == {field.name for field in dataclasses.fields(TokenSpace)}


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


@pytest.mark.parametrize("change", [{"surprise": 1}, {"layout": {"rows": 2}}, {"text_size": 3}, {"codebook_size": "9"}])
def test_values_that_are_no_token_space_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="token space"):
        TokenSpace.from_dict({**SPACE.to_dict(), **change})


def test_an_image_span_is_its_codes_and_two_borders() -> None:
    layout = FixedLayout(rows=3, columns=5)
    assert (layout.num_codes, layout.span) == (15, 17)
