"""MediaSpec: how many tokens an image takes, and that a spec survives JSON."""

from __future__ import annotations

import json

import pytest

from tokenizers_vq.media import LatentSpec, MediaSpec, PatchSpec

LATENTS = MediaSpec(name="latents", width=16, sizing=LatentSpec(reduction=8, image_size=64), source="abc")
PATCHES = MediaSpec.of_patches(PatchSpec(size=4, max_patches=20, max_side=10))


@pytest.mark.parametrize("spec", [LATENTS, PATCHES])
def test_a_spec_is_the_same_after_json(spec: MediaSpec) -> None:
    again = MediaSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec and type(again.sizing) is type(spec.sizing)


def test_grids_are_rows_and_columns_of_tokens() -> None:
    assert LATENTS.grid(64, 32) == (8, 4) and LATENTS.max_side == 8
    assert PATCHES.grid(8, 16) == (2, 4) and PATCHES.max_side == 10 and PATCHES.width == 48
    rows, columns = PATCHES.grid(400, 400)
    assert rows == columns == 4, "the largest square of at most 20 patches"


@pytest.mark.parametrize(("count", "max_side"), [(None, 32), (64, 32), (1024, 64), (4096, 128)])
def test_sides_may_be_twice_those_of_a_square(count: int | None, max_side: int) -> None:
    assert PatchSpec.of(8, count).max_side == max_side


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"name": "audio"}, "one of latents, patches"),
        ({"name": "patches"}, "with its own sizing"),
        ({"width": 0}, "at least one number"),
    ],
)
def test_wrong_specs_are_refused(wrong: dict, reason: str) -> None:
    values = {"name": "latents", "width": 16, "sizing": LatentSpec(reduction=8, image_size=64), **wrong}
    with pytest.raises(ValueError, match=reason):
        MediaSpec(**values)


@pytest.mark.parametrize(
    "values", [{}, {"name": "audio"}, {"name": "latents", "width": 3, "sizing": {"size": 3}}, {"name": "patches"}]
)
def test_what_is_no_spec_is_refused(values: dict) -> None:
    with pytest.raises(ValueError, match="not a media spec"):
        MediaSpec.from_dict(values)


def test_sizes_are_at_least_one() -> None:
    for wrong in ({"size": 0}, {"max_patches": 0}, {"max_side": 0}):
        with pytest.raises(ValueError, match="at least one pixel"):
            PatchSpec(**wrong)
    with pytest.raises(ValueError, match="covers at least one pixel"):
        LatentSpec(reduction=0, image_size=8)
