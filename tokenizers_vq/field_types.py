"""Dataclasses from plain values: a field of another type than its annotation is refused before anything computes."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Built = TypeVar("Built")


def from_plain(kind: type[Built], values: Mapping[str, Any]) -> Built:
    """`kind(**values)`. Raises TypeError for a field of a wrong type, and for unknown or missing fields."""
    hints = get_type_hints(kind)
    for name, value in values.items():
        if name in hints and not is_a(value, hints[name]):
            wanted = getattr(hints[name], "__name__", hints[name])
            raise TypeError(f"{name} is of type {wanted}, got {value!r:.80}")
    return kind(**values)


def is_a(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type. A float may be written as an int, a tuple as a list."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(is_a(value, each) for each in arguments)
    if origin is Literal:
        return any(value == each and type(value) is type(each) for each in arguments)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return False
        wanted = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        return len(value) == len(wanted) and all(map(is_a, value, wanted))
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, origin or (NoneType if hint is None else hint))
