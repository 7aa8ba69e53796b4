"""The short form of tests/fuzz/decoding.py."""

from __future__ import annotations

import pytest

from tests.fuzz.decoding import fuzz


@pytest.mark.slow
def test_a_few_hundred_random_answers_are_all_well_formed() -> None:
    seen = fuzz(300, seed=1)
    assert seen["answers"] == 300 and seen["images"] > 100
    assert min(seen[kind] for kind in ("fixed", "grid", "structured", "free", "end", "length")) > 0
