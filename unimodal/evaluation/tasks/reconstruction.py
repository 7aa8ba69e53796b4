"""Reconstruction: what the image tokenizer alone keeps of a picture, and what a flow branch's autoencoder keeps."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from data_pipelines.images import stackable, to_image, to_tensor
from unimodal.evaluation.contract import (
    AnyToAnyModel,
    DocumentSource,
    Example,
    Reporter,
    TaskResult,
    codec_of,
    silent,
)
from unimodal.evaluation.drawing import redrawn
from unimodal.evaluation.metrics.images import ReconstructionScores
from unimodal.evaluation.samples import read_samples

NUM_EXAMPLES = 12

# Shapes: B images, H height, W width; images lie in [-1, 1].


def evaluate(
    model: AnyToAnyModel,
    source: DocumentSource,
    *,
    limit: int | None = None,
    batch_size: int = 64,
    reporter: Reporter = silent,
) -> TaskResult:
    """Encode and decode every distinct picture among the first `limit`. Raises ValueError when there is none.

    `drawn_psnr` and `drawn_ssim` are of what the model draws with: latents with the flow branch, otherwise codes again.
    """
    start = time.perf_counter()
    codec = codec_of(model)
    pictures = list(_distinct_pictures(model, source, limit))
    if not pictures:
        raise ValueError("the source has no pictures: reconstruction has nothing to do")
    scores = ReconstructionScores(codebook_size=codec.codebook_size)
    drawn = ReconstructionScores(codebook_size=codec.codebook_size)
    examples: list[Example] = []
    draws_latents = model.autoencoder is not None
    progress = reporter("pictures", len(pictures))
    for group in stackable(pictures, batch_size):
        batch = torch.stack([pictures[index] for index in group])
        size = codec.size_of(*batch.shape[2:])
        with torch.inference_mode():
            codes = codec.encode(batch).cpu()
            decoded = codec.decode(codes, size).float().clamp(-1, 1).cpu()
        scores.update(batch, decoded, codes)
        if draws_latents:
            drawn.update(batch, redrawn(model, batch), codes)
        for original, copy in list(zip(batch, decoded, strict=True))[: NUM_EXAMPLES - len(examples)]:
            examples.append(Example(images={"original": to_image(original), "reconstruction": to_image(copy)}))
        progress(len(batch))
    best = (drawn if draws_latents else scores).metrics()
    return TaskResult(
        task="reconstruction",
        metrics=scores.metrics() | {f"drawn_{name}": best[name] for name in ("psnr", "ssim")},
        n=len(pictures),
        seconds=time.perf_counter() - start,
        recipe={"preprocessing": "border-pad to the model's image size", "images": "each distinct one once"},
        examples=examples,
    )


def _distinct_pictures(model: AnyToAnyModel, source: DocumentSource, limit: int | None) -> Iterator[Tensor]:
    """(3, H, W) of every picture that did not occur before."""
    seen: set[tuple[tuple[int, int], bytes]] = set()
    for sample in read_samples(source, model, limit=limit):
        digest = (sample.image.size, hashlib.sha256(sample.image.tobytes()).digest())
        if digest not in seen:
            seen.add(digest)
            yield to_tensor(sample.image)
