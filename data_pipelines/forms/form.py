"""PictureForm: what a form of pictures offers to templates."""

from __future__ import annotations

from random import Random
from typing import Protocol

import numpy as np

from data_pipelines.outline import Run
from data_pipelines.shards.format import TokenSegment
from tokenizers_vq.media import LATENTS, PATCHES


class ShownForm(Protocol):
    """How pictures stand in sequences where the reader is shown them.

    `weight` is the loss weight of what the form predicts of a picture. `followed` says whether the sequence may draw or
    continue after the picture: then the form gives every representation that a later drawing attends to. What is only
    asked or captioned is not followed.
    """

    def shown(self, picture: TokenSegment, weight: float, *, followed: bool) -> tuple[Run, ...]:
        """The runs of a picture that the reader is shown. Raises ValueError where the shards lack its media."""
        ...


class PictureForm(ShownForm, Protocol):
    """How pictures stand in sequences, shown or drawn."""

    def drawn(self, picture: TokenSegment, weight: float, *, followed: bool) -> tuple[Run, ...]:
        """The runs of a picture that is drawn in reply to a prompt, in the same way."""
        ...

    def whole(self, random: Random) -> bool:
        """Whether a document that could end with its picture is formatted as if it were followed.

        A form in which that makes no difference draws no random number.
        """
        ...

    def source(self, random: Random) -> ShownForm:
        """The form of the picture that an edit changes: this one, or a part of its representations.

        A form of one representation draws no random number.
        """
        ...


REMEDIES = {LATENTS: "tokenize with --autoencoder", PATCHES: "tokenize with --patch"}
"""How shards come to hold each kind of media."""


def media_values(picture: TokenSegment, name: str) -> np.ndarray:
    """The media of a picture, (R, K, C). Raises ValueError, with the remedy, where the shards hold none."""
    if name not in picture.media:
        raise ValueError(f"templates need {name}, and these shards hold none: {REMEDIES[name]}")
    return picture.media[name]
