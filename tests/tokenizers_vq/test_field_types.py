"""Dataclasses from plain values: types that fit their annotations, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from tokenizers_vq.field_types import from_plain, is_a


@dataclass(frozen=True)
class Inner:
    size: int = 1


@dataclass(frozen=True)
class Outer:
    number: float
    name: str = ""
    kind: Literal["a", "b"] = "a"
    inner: Inner | None = None
    pair: tuple[int, int] = (1, 2)
    many: tuple[tuple[int, int], ...] = ()
    flag: bool = False
    table: Mapping[str, int] = field(default_factory=dict)
    anything: Any = None


@pytest.mark.parametrize(
    ("value", "hint", "fits"),
    [
        (1, int, True),
        (1.0, int, False),
        (True, int, False),
        (1, float, True),
        (True, float, False),
        ("1", float, False),
        (None, float, False),
        (0, bool, False),
        (None, int | None, True),
        ("x", int | None, False),
        ("a", Literal["a", "b"], True),
        (True, Literal[1, 2], False),
        ([1, 2], tuple[int, int], True),
        ([1, 2, 3], tuple[int, int], False),
        ([1, "2"], tuple[int, ...], False),
        ("12", tuple[int, ...], False),
        ([], tuple[int, ...], True),
        ({}, Mapping[str, int], True),
        ([], dict[str, Any], False),
    ],
)
def test_a_value_fits_its_annotation_or_not(value: Any, hint: Any, fits: bool) -> None:
    assert is_a(value, hint) == fits


def test_what_fits_is_built_and_what_does_not_is_named() -> None:
    values = {"number": 1, "inner": Inner(), "pair": [3, 4], "many": [[1, 2]], "table": {"x": 1}, "anything": object()}
    assert from_plain(Outer, values) == Outer(**values)
    wrong: dict[str, Any] = {"number": "1", "kind": "c", "inner": {}, "pair": [1], "flag": 1, "name": None}
    for name, value in wrong.items():
        with pytest.raises(TypeError, match=f"^{name} is of type") as error:
            from_plain(Outer, {"number": 1.0, name: value})
        assert "\n" not in str(error.value)
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        from_plain(Outer, {"number": 1.0, "colour": 1})
    with pytest.raises(TypeError, match="number"):
        from_plain(Outer, {})
