"""Editing: pictures with a request to recolour their shape, drawn and held against the answer known to the pixel."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import fmean

import torch
from PIL import Image
from torch import Tensor

from data_pipelines.documents import Document, ImageSegment, TextSegment
from data_pipelines.images import stackable, to_image, to_tensor
from unimodal.evaluation.contract import (
    DRAWN,
    AnyToAnyModel,
    DocumentSource,
    Example,
    Reporter,
    Sampling,
    TaskResult,
    only_picture,
    silent,
)
from unimodal.evaluation.drawing import redrawn
from unimodal.evaluation.judge import Judge, Verdict, judge_recipe, verdicts_on
from unimodal.evaluation.metrics.images import masked_psnr

NUM_EXAMPLES = 24

# Shapes: H height, W width; images lie in [-1, 1].


@dataclass(frozen=True, kw_only=True)
class Edit:
    """A picture as the model is shown it, what is asked of it, and the known answer at the same size."""

    shown: Image.Image
    known: Image.Image
    request: str
    colour: str
    right: Verdict
    """The new colour, and the shape that stays."""


Drawn = Sequence[Image.Image | None]


def evaluate(
    model: AnyToAnyModel,
    source: DocumentSource,
    *,
    judge: Judge,
    sampling: Sampling = DRAWN,
    limit: int | None = None,
    batch_size: int = 128,
    reporter: Reporter = silent,
) -> TaskResult:
    """Draw the first `limit` edits of the source whose shape is known.

    Every score is a mean over all edits; one that is not exactly one picture counts as malformed, wrong and 0 dB.
    `psnr_rest` looks only at pixels that the edit leaves alone. `ceiling_*` scores the known answers through
    what the model draws with, codes or latents. Raises ValueError when the source has no such edits.
    """
    start = time.perf_counter()
    if limit is not None and limit < 1:
        raise ValueError(f"the limit is at least 1, got {limit}")
    edits = list(islice(read_edits(source, model), limit))
    if not edits:
        raise ValueError("the source has no edits whose shape is known: edit has nothing to draw")
    outputs = model.generate(
        [[edit.shown, edit.request] for edit in edits],
        "image",
        batch_size=batch_size,
        progress=reporter("edits", len(edits)),
        **sampling.to_dict(),
    )
    drawn = [only_picture(parts) for parts in outputs]
    verdicts = verdicts_on(judge, drawn)
    known = verdicts_on(judge, [edit.known for edit in edits])
    metrics = _verdict_scores(edits, verdicts) | _pixel_scores(edits, drawn)
    metrics["malformed"] = fmean(picture is None for picture in drawn)
    metrics["known_answer_accuracy"] = _verdict_scores(edits, known)["accuracy"]
    metrics |= _ceiling(model, edits, judge)
    recipe = sampling.recipe() | {
        "prompt_template": "image, request",
        "preprocessing": "border-pad to the model's image size",
        "edits": "the first whose shape is known",
        "judge": judge_recipe(judge),
    }
    return TaskResult(
        task="edit",
        metrics=metrics,
        n=len(edits),
        seconds=time.perf_counter() - start,
        recipe=recipe,
        examples=_examples(edits, drawn, verdicts),
    )


def read_edits(source: DocumentSource, model: AnyToAnyModel) -> Iterator[Edit]:
    """The source's edits whose colour and shape are known, both pictures at the model's own size."""
    for document in source.documents():
        if document.task == "edit" and {"colour", "target", "shape"} <= document.meta.keys():
            yield _edit(document, model)


def _edit(document: Document, model: AnyToAnyModel) -> Edit:
    pictures = {part.role: part.open() for part in document.segments if isinstance(part, ImageSegment)}
    shown, known = (to_image(model.preprocess(pictures[role])) for role in ("image", "answer"))
    request = next(part.text for part in document.segments if isinstance(part, TextSegment))
    right = (document.meta["target"], document.meta["shape"])
    return Edit(shown=shown, known=known, request=request, colour=document.meta["colour"], right=right)


def _verdict_scores(edits: Sequence[Edit], verdicts: Sequence[Verdict | None]) -> dict[str, float]:
    pairs = [(edit, verdict or ("", "")) for edit, verdict in zip(edits, verdicts, strict=True)]
    return {
        "accuracy": fmean(verdict == edit.right for edit, verdict in pairs),
        "colour": fmean(verdict[0] == edit.right[0] for edit, verdict in pairs),
        "shape": fmean(verdict[1] == edit.right[1] for edit, verdict in pairs),
        "copied": fmean(verdict[0] == edit.colour for edit, verdict in pairs),
    }


def _pixel_scores(edits: Sequence[Edit], drawn: Drawn) -> dict[str, float]:
    whole, rest = [], []
    for edit, picture in zip(edits, drawn, strict=True):
        if picture is None:
            whole.append(0.0)
            rest.append(0.0)
            continue
        resized = picture if picture.size == edit.known.size else picture.resize(edit.known.size)
        pixels, known, shown = map(to_tensor, (resized, edit.known, edit.shown))
        left_alone = (known == shown).all(dim=0)
        whole.append(masked_psnr(pixels, known, torch.ones_like(left_alone)))
        rest.append(masked_psnr(pixels, known, left_alone))
    return {"psnr": fmean(whole), "psnr_rest": fmean(rest)}


def _ceiling(model: AnyToAnyModel, edits: Sequence[Edit], judge: Judge) -> dict[str, float]:
    """What a model scores that always draws the codes or latents of the known answer."""
    decoded = _redrawn(model, [to_tensor(edit.known) for edit in edits])
    scores = {"accuracy": _verdict_scores(edits, verdicts_on(judge, decoded))["accuracy"]}
    scores |= _pixel_scores(edits, decoded)
    return {f"ceiling_{name}": value for name, value in scores.items()}


def _redrawn(model: AnyToAnyModel, pictures: Sequence[Tensor]) -> list[Image.Image]:
    """(3, H, W) of several sizes -> the same through what the model draws with."""
    decoded: dict[int, Image.Image] = {}
    for group in stackable(pictures, 64):
        batch = torch.stack([pictures[index] for index in group])
        decoded |= zip(group, map(to_image, redrawn(model, batch)), strict=True)
    return [decoded[index] for index in range(len(pictures))]


def _examples(edits: Sequence[Edit], drawn: Drawn, verdicts: Sequence[Verdict | None]) -> list[Example]:
    """Edits spread evenly over all, for the report."""
    step = max(1, len(edits) // NUM_EXAMPLES)
    return [
        Example(
            prompt=edit.request,
            answer=" ".join(verdict) if verdict else "",
            reference=" ".join(edit.right),
            right=verdict == edit.right,
            images={"shown": edit.shown, "known": edit.known} | ({} if picture is None else {"drawn": picture}),
        )
        for edit, picture, verdict in list(zip(edits, drawn, verdicts, strict=True))[::step][:NUM_EXAMPLES]
    ]
