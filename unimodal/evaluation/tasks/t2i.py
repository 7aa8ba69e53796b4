"""Text to image: every colour and shape drawn many times and judged, and how many image spans are well formed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, product
from statistics import fmean
from typing import Any

from PIL import Image

from data_pipelines.images import to_image, to_tensor
from data_pipelines.sources.easy_vqa import COLOURS, SHAPES, caption
from unimodal.evaluation.contract import (
    DRAWN,
    AnyToAnyModel,
    DocumentSource,
    Example,
    Reporter,
    Sampling,
    TaskResult,
    codec_of,
    only_picture,
    silent,
)
from unimodal.evaluation.drawing import checked_spans, diversity, image_span_check, redrawn
from unimodal.evaluation.dual_encoder import DualEncoder
from unimodal.evaluation.dual_scores import CaptionPool, dual_scores
from unimodal.evaluation.judge import Judge, Verdict, judge_recipe, verdicts_on
from unimodal.evaluation.retrieval import real_pictures, retrieval_scores
from unimodal.evaluation.samples import answerable, captions_of
from unimodal.evaluation.span_faults import span_faults

PICTURES_SHOWN_PER_PROMPT = 4
CAPTIONS_DRAWN = 32
CHECKS_PER_PROMPT = 4
"""Drawings of a caption that are counted with the state machine on, and as many with it off."""


def evaluate(
    model: AnyToAnyModel,
    source: DocumentSource,
    *,
    judge: Judge | JudgingEncoder | None,
    sampling: Sampling = DRAWN,
    limit: int | None = None,
    batch_size: int = 128,
    seeds_per_prompt: int = 16,
    reporter: Reporter = silent,
) -> TaskResult:
    """Draw with the state machine on, then count malformed image spans with it on and off.

    With a judge of colour and shape: every caption that easy-VQA can have, `seeds_per_prompt` times, at most `limit`
    pictures.
    Without: the first `limit` (32) distinct captions of the source, once each. A dual encoder says how often it finds
    the caption of a drawing among 50, and each attribute, beside the same for real pictures and their reconstructions;
    where there is none, the model itself finds captions (evaluation/retrieval.py). A drawing that is not exactly one
    picture counts as malformed and as wrong.
    Raises ValueError when there is no judge and the source has no captions.
    """
    start = time.perf_counter()
    codec_of(model)
    encoder, judge = (judge, None) if isinstance(judge, JudgingEncoder) else (None, judge)
    if seeds_per_prompt < 1 or (limit is not None and limit < 1):
        raise ValueError(f"drawings are at least 1, got {seeds_per_prompt} and a limit of {limit}")
    settings = sampling.to_dict() | {"batch_size": batch_size}
    captions = colour_shape_captions() if judge else _drawable(model, source, limit or CAPTIONS_DRAWN, settings)
    prompts = (captions * (seeds_per_prompt if judge else 1))[:limit]
    outputs = model.generate(prompts, "image", progress=reporter("pictures", len(prompts)), **settings)
    pictures = [only_picture(parts) for parts in outputs]
    checks = captions * CHECKS_PER_PROMPT
    fresh = settings | {"seed": sampling.seed + len(prompts)}
    metrics = _malformed(model, checks, fresh, pictures)
    verdicts = verdicts_on(judge, pictures) if judge else [None] * len(pictures)
    if not judge and encoder:
        metrics = _found_by_encoder(encoder, model, source, captions, pictures) | metrics
    elif not judge:
        real = real_pictures(source, model, captions)
        progress = reporter("retrieval", len(pictures) + sum(picture is not None for picture in real))
        metrics = retrieval_scores(model, captions, pictures, real, progress) | metrics
    if judge:
        varied = {"diversity": diversity(prompts, pictures)} if seeds_per_prompt > 1 else {}
        metrics = _accuracy(prompts, verdicts) | varied | {"judge_accuracy": judge.accuracy_on("test")} | metrics
    recipe = sampling.recipe() | {
        "prompt_template": "caption",
        "prompts": len(captions),
        "drawings_per_prompt": len(prompts) / len(captions),
        "span_checks": len(checks),
        "judge": encoder.recipe() if encoder else judge_recipe(judge),
    }
    return TaskResult(
        task="t2i",
        metrics=metrics,
        n=len(prompts),
        seconds=time.perf_counter() - start,
        recipe=recipe,
        examples=_examples(prompts, pictures, verdicts, len(captions)),
    )


@dataclass(frozen=True, kw_only=True)
class JudgingEncoder:
    """A dual encoder, the captions that it compares, and whether it was trained on other pictures than these."""

    encoder: DualEncoder
    pool: CaptionPool
    held_out: bool

    def recipe(self) -> dict[str, Any]:
        """As a results file tells of it."""
        return self.encoder.recipe() | {"real_pictures_held_out": self.held_out}


def _found_by_encoder(
    judging: JudgingEncoder,
    model: AnyToAnyModel,
    source: DocumentSource,
    captions: Sequence[str],
    pictures: Sequence[Image.Image | None],
) -> dict[str, float]:
    """Scores of drawings, of the real pictures of the same captions, and of these through the image tokenizer."""
    real = real_pictures(source, model, captions)
    again = [None if picture is None else _through_tokenizer(model, picture) for picture in real]
    encoder, pool = judging.encoder, judging.pool
    scores = dual_scores(encoder, pool, captions, pictures)
    kept = [number for number, picture in enumerate(real) if picture is not None]
    for suffix, shown in (("_of_real_pictures", real), ("_of_reconstructions", again)):
        chosen = [captions[number] for number in kept]
        scores |= dual_scores(encoder, pool, chosen, [shown[number] for number in kept], suffix)
    return scores


def _through_tokenizer(model: AnyToAnyModel, picture: Image.Image) -> Image.Image:
    return to_image(redrawn(model, to_tensor(picture)[None])[0].cpu())


def colour_shape_captions() -> list[str]:
    """Every caption that easy-VQA can have."""
    return [caption(colour, shape) for colour, shape in product(COLOURS, SHAPES)]


def source_captions(source: DocumentSource, count: int) -> list[str]:
    """The first `count` distinct captions. Raises ValueError when there is none."""
    texts = (text for document in source.documents() for text in captions_of(document))
    found: dict[str, None] = {}
    for text in texts:
        found[text] = None
        if len(found) == count:
            break
    if not found:
        raise ValueError("the source has no captions: t2i has nothing to draw")
    return list(found)


def _drawable(model: AnyToAnyModel, source: DocumentSource, count: int, settings: dict[str, Any]) -> list[str]:
    """The first captions, without those that are too long for the model, which are counted by name."""
    found = source_captions(source, count)
    captions = [found[number] for number in answerable(model, source, found, found, "image", settings)]
    if not captions:
        raise ValueError(f"none of the first {len(found)} captions can be drawn: {source.failures.bad[-1][1]}")
    return captions


def _malformed(
    model: AnyToAnyModel, prompts: list[str], settings: dict[str, Any], pictures: Sequence[Image.Image | None]
) -> dict[str, float]:
    """Shares of malformed image spans: with the state machine, over drawings and checks; without it, over checks, and
    what is wrong with them."""
    spans, bad = image_span_check(model, prompts, **settings | {"constrained": True})
    spans, bad = spans + len(pictures), bad + sum(picture is None for picture in pictures)
    answers = model.generate(prompts, "image", **dict[str, Any](settings, constrained=False))
    free_spans, free_bad = checked_spans(answers, model.token_space)
    free: dict[str, float] = {}
    if model.autoencoder is None:  # what is drawn from latents has no codes that could be wrong
        causes = span_faults([answer.ids for answer in answers], model.token_space).shares()
        free = {f"malformed_free_{cause}": share for cause, share in causes.items()}
    return {"malformed": bad / spans, "malformed_free": free_bad / max(free_spans, 1), **free}


def _accuracy(prompts: Sequence[str], verdicts: Sequence[Verdict | None]) -> dict[str, float]:
    truth = {caption(colour, shape): (colour, shape) for colour, shape in product(COLOURS, SHAPES)}
    colours = [
        verdict is not None and verdict[0] == truth[prompt][0]
        for prompt, verdict in zip(prompts, verdicts, strict=True)
    ]
    shapes = [
        verdict is not None and verdict[1] == truth[prompt][1]
        for prompt, verdict in zip(prompts, verdicts, strict=True)
    ]
    both = [colour and shape for colour, shape in zip(colours, shapes, strict=True)]
    return {"accuracy": fmean(both), "colour": fmean(colours), "shape": fmean(shapes)}


def _examples(
    prompts: Sequence[str],
    pictures: Sequence[Image.Image | None],
    verdicts: Sequence[Verdict | None],
    num_captions: int,
) -> list[Example]:
    """The first few drawings of every prompt; prompts come round by round."""
    rows = zip(prompts, pictures, verdicts, strict=True)
    examples = []
    for prompt, picture, verdict in islice(rows, num_captions * PICTURES_SHOWN_PER_PROMPT):
        answer = " ".join(verdict) if verdict else ""
        examples.append(
            Example(
                prompt=prompt,
                answer=answer,
                right=caption(*verdict) == prompt if verdict else None,
                images={} if picture is None else {"drawn": picture},
            )
        )
    return examples
