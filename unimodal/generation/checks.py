"""Checks of what users set."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real


def check_number(name: str, value: object, low: float, high: float, *, whole: bool = False) -> None:
    """Raise ValueError, with name and value, for what is no number (no whole one) in the range."""
    is_number = isinstance(value, Real) and not isinstance(value, bool) and (not whole or isinstance(value, int))
    if not (is_number and low <= value <= high):  # pyright: ignore[reportOperatorIssue]
        kind = "whole number" if whole else "number"
        raise ValueError(f"{name} is a {kind} from {low} to {high}, got {value!r:.60}")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise ValueError, with name and value, for what is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name} is one of {', '.join(choices)}, got {value!r:.60}")
