"""Slow and obvious: which of the 24 possible pictures would get every one of these answers?"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

World = tuple[str, str]

ALL_COLOURS = "black blue brown gray green red teal yellow".split()
ALL_SHAPES = "circle rectangle triangle".split()


def consistent_worlds(pairs: Iterable[tuple[str, str]]) -> list[World]:
    """The (colour, shape) pictures in which someone who looks would give exactly these answers."""
    pairs = list(pairs)
    worlds = product(ALL_COLOURS, ALL_SHAPES)
    return [world for world in worlds if all(look(question, world) == answer for question, answer in pairs)]


def look(question: str, world: World) -> str | None:
    """The answer to `question` in `world`; None when it speaks of something that is not in the picture."""
    colour, shape = world
    words = question.removesuffix("?").split()
    named_colours = [word for word in words if word in ALL_COLOURS]
    named_shapes = [word for word in words if word in ALL_SHAPES]
    all_true = all(word == colour for word in named_colours) and all(word == shape for word in named_shapes)
    if words[0] == "what":
        if not all_true:
            return None
        return colour if "color" in words else shape
    denied = "not" in words or "no" in words
    return "yes" if all_true != denied else "no"
