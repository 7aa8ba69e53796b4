"""Prompts that begin alike: which ones to decode side by side, and how much of them to run through the model once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

MIN_SHARED = 8
"""Common ids below which sharing is not worth its copies."""

NEARLY_ALL = 0.7
"""A prompt joins a group if it shares at least this much of what the group has in common so far."""


class Planned(NamedTuple):
    """A request's number, its group, and how many first ids the group has in common (0: it is alone)."""

    request: int
    group: int
    shared: int


def plan(prompts: Sequence[Sequence[int]]) -> list[Planned]:
    """The order in which prompts are decoded: groups that begin alike stay together, else first come, first served.

    The last id of every prompt is not shared, because its output decides what comes next.
    """
    order = sorted(range(len(prompts)), key=lambda request: tuple(prompts[request]))
    groups: list[tuple[int, list[int]]] = []
    for request in order:
        usable = len(prompts[request]) - 1
        if groups:
            length, members = groups[-1]
            before = prompts[members[-1]]
            common = min(common_length(before, prompts[request]), usable, length)
            first = len(members) == 1
            if common >= MIN_SHARED and (first or common >= NEARLY_ALL * length):
                groups[-1] = (common, [*members, request])
                continue
        groups.append((usable, [request]))
    groups.sort(key=lambda group: min(group[1]))
    return [
        Planned(request, number, length if len(members) > 1 else 0)
        for number, (length, members) in enumerate(groups)
        for request in sorted(members)
    ]


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many first ids two prompts have in common."""
    length = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        length += 1
    return length
