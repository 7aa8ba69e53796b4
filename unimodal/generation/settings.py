"""Checks of the numbers that users set."""

from __future__ import annotations

from numbers import Real


def check_number(name: str, value: object, least: float, most: float, *, whole: bool = False) -> None:
    """Raise ValueError, with name and value, for what is no number (no whole one) in the range."""
    is_number = isinstance(value, Real) and not isinstance(value, bool) and (not whole or isinstance(value, int))
    if not (is_number and least <= value <= most):  # pyright: ignore[reportOperatorIssue]
        kind = "whole number" if whole else "number"
        raise ValueError(f"{name} is a {kind} from {least} to {most}, got {value!r:.60}")
