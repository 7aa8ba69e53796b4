"""Riddles made from easy-VQA images: a request that names a picture by what it is not, its solution, and the picture.

They teach to think before drawing (unimodal/generation/thinking.py): the solution is written first, then drawn.
"""

from __future__ import annotations

import random
from pathlib import Path

from data_pipelines.documents import THINKING, ImageSegment, Segment, TextSegment
from data_pipelines.sources.easy_vqa_deduction import SHAPES

FORMS = (
    "something {colour} that is neither a {one} nor a {other}",
    "it is {colour}, not a {one} and not a {other}",
    "not a {one}, not a {other}, but {colour}",
)


def riddle(colour: str, shape: str, rng: random.Random) -> str:
    """A request for a picture of this colour and shape that does not name the shape."""
    one, other = rng.sample([each for each in SHAPES if each != shape], 2)
    return THINKING + rng.choice(FORMS).format(colour=colour, one=one, other=other)


def make_riddle(path: Path, colour: str, shape: str, caption: str, rng: random.Random) -> tuple[Segment, ...]:
    """The request, the solution, and the picture. Its words are drawn."""
    asked = TextSegment(text=riddle(colour, shape, rng), role="request")
    return asked, TextSegment(text=caption, role="answer"), ImageSegment(source=path, role="answer")
