"""What the questions and answers of one easy-VQA image say, taken together, about its colour and shape."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from random import Random

COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")

PRESENCE_FORMS = {
    "is there a {}?": True,
    "is there a {} in the image?": True,
    "does the image contain a {}?": True,
    "is a {} present?": True,
    "is there not a {}?": False,
    "is there not a {} in the image?": False,
    "does the image not contain a {}?": False,
    "is no {} present?": False,
}
"""Form -> whether "yes" means that the thing is there."""
COLOUR_FORMS = ("what color is the {}?", "what is the color of the {}?")
SHAPE_FORMS = ("what shape does the image contain?", "what shape is in the image?", "what shape is present?")
COLOURED_SHAPE_FORM = "what is the {} shape?"

QuestionAnswer = tuple[str, str]


@dataclass(frozen=True)
class Candidates:
    """The colours and shapes that an image may still have. Every colour goes with every shape."""

    colours: frozenset[str] = frozenset(COLOURS)
    shapes: frozenset[str] = frozenset(SHAPES)

    def __and__(self, other: Candidates) -> Candidates:
        return Candidates(self.colours & other.colours, self.shapes & other.shapes)

    @property
    def contradictory(self) -> bool:
        """Nothing is left: some of the answers cannot be true together."""
        return not (self.colours and self.shapes)

    @property
    def settled(self) -> tuple[str, str] | None:
        """(colour, shape) when exactly one of each is left."""
        if len(self.colours) == len(self.shapes) == 1:
            return next(iter(self.colours)), next(iter(self.shapes))
        return None


def deduce(pairs: Iterable[QuestionAnswer]) -> tuple[Candidates, int]:
    """What is left when every answer is believed, and how many pairs were of no known form and taught nothing."""
    candidates, unknown = Candidates(), 0
    for pair in pairs:
        claim = known_claims().get(pair)
        if claim is None:
            unknown += 1
        else:
            candidates &= claim
    return candidates, unknown


@cache
def known_claims() -> dict[QuestionAnswer, Candidates]:
    """(question, answer) -> what it leaves possible, for all 107 questions that the data set asks."""
    return dict([*_presence_claims(), *_colour_claims(), *_shape_claims()])


def shape_questions(shape: str, count: int, random: Random) -> list[QuestionAnswer]:
    """`count` different questions whether a picture of this shape has some shape, each form and shape alike.

    Raises ValueError for more than the 24 that there are.
    """
    asked = [(form, other) for form in PRESENCE_FORMS for other in SHAPES]
    if count > len(asked):
        raise ValueError(f"there are {len(asked)} yes-or-no questions about shapes, not {count}")
    chosen = random.sample(asked, count)
    return [(form.format(other), "yes" if (other == shape) == PRESENCE_FORMS[form] else "no") for form, other in chosen]


def _presence_claims() -> Iterator[tuple[QuestionAnswer, Candidates]]:
    for thing, present, absent in _things():
        for form, yes_means_present in PRESENCE_FORMS.items():
            question = form.format(thing)
            yield (question, "yes"), present if yes_means_present else absent
            yield (question, "no"), absent if yes_means_present else present


def _things() -> Iterator[tuple[str, Candidates, Candidates]]:
    """(what a question names, what is left when it is there, what is left when it is not)."""
    everything = Candidates()
    for colour in COLOURS:
        there = frozenset([colour])
        yield f"{colour} shape", Candidates(colours=there), Candidates(colours=everything.colours - there)
    for shape in SHAPES:
        there = frozenset([shape])
        yield shape, Candidates(shapes=there), Candidates(shapes=everything.shapes - there)


def _colour_claims() -> Iterator[tuple[QuestionAnswer, Candidates]]:
    """ "what color is the circle?" also says that the shape is a circle."""
    subjects = {"shape": frozenset(SHAPES)} | {shape: frozenset([shape]) for shape in SHAPES}
    for form in COLOUR_FORMS:
        for subject, shapes in subjects.items():
            for colour in COLOURS:
                yield (form.format(subject), colour), Candidates(frozenset([colour]), shapes)


def _shape_claims() -> Iterator[tuple[QuestionAnswer, Candidates]]:
    """ "what is the red shape?" also says that the colour is red."""
    for shape in SHAPES:
        shapes = frozenset([shape])
        for form in SHAPE_FORMS:
            yield (form, shape), Candidates(shapes=shapes)
        for colour in COLOURS:
            yield (COLOURED_SHAPE_FORM.format(colour), shape), Candidates(frozenset([colour]), shapes)
