"""Drawings scored without a judge: does the model itself find the caption that a picture was drawn from?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from PIL import Image

from data_pipelines.images import to_image
from unimodal.evaluation.contract import AnyToAnyModel, DocumentSource
from unimodal.evaluation.samples import captions_of, picture_of

CANDIDATES = 32
"""Captions that a picture is compared with, the right one among them."""


def retrieval_scores(
    model: AnyToAnyModel,
    captions: Sequence[str],
    drawn: Sequence[Image.Image | None],
    real: Sequence[Image.Image | None],
    progress: Callable[[int], None],
) -> dict[str, float]:
    """Shares of pictures whose likeliest caption among the candidates is theirs: of drawings, and of real pictures.

    `drawn` and `real` are pictures of the captions, in order. The share of real pictures is the ceiling: what the
    model's own captions tell apart. A caption without a drawing counts as wrong, one without a real picture not.
    """
    found = [_finds(model, captions, number, picture, progress) for number, picture in enumerate(drawn)]
    ceiling = [_finds(model, captions, number, picture, progress) for number, picture in enumerate(real) if picture]
    scores = {"retrieval": fmean(found), "retrieval_chance": 1 / min(CANDIDATES, len(captions))}
    return scores | ({"retrieval_of_real_pictures": fmean(ceiling)} if ceiling else {})


def real_pictures(source: DocumentSource, model: AnyToAnyModel, captions: Sequence[str]) -> list[Image.Image | None]:
    """The first picture of each caption, at the model's size; None where none can be read."""
    found: dict[str, Image.Image] = {}
    wanted = set(captions)
    for document in source.documents():
        missing = [text for text in captions_of(document) if text in wanted and text not in found]
        picture = picture_of(document)
        if picture is None or not missing:
            continue
        try:
            shown = to_image(model.preprocess(picture.open()))
        except ValueError as error:
            source.failures.revoke(document.key, str(error))
            continue
        found.update(dict.fromkeys(missing, shown))
        if len(found) == len(wanted):
            break
    return [found.get(caption) for caption in captions]


def _finds(
    model: AnyToAnyModel,
    captions: Sequence[str],
    number: int,
    picture: Image.Image | None,
    progress: Callable[[int], None],
) -> bool:
    """Whether caption `number` is the likeliest of those after it, round the end, of which there are CANDIDATES."""
    progress(1)
    if picture is None:
        return False
    chosen = [captions[(number + step) % len(captions)] for step in range(min(CANDIDATES, len(captions)))]
    likelihoods = model.log_likelihoods([[picture]] * len(chosen), chosen)
    return likelihoods[0] == max(likelihoods) and likelihoods.count(likelihoods[0]) == 1
