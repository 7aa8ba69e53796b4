"""What drawings are held against: how many image spans are well formed, and the best picture that could be drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from unimodal.evaluation.contract import AnyToAnyModel, codec_of
from unimodal.generation.modality import check_spans
from unimodal.generation.prompts import Prompt

# Shapes: B images, H height, W width; images lie in [-1, 1].


def image_span_check(model: AnyToAnyModel, prompts: Sequence[Prompt], **settings: Any) -> tuple[int, int]:
    """(image spans, malformed ones) over drawings of the prompts; one without any image counts as malformed.

    `settings` are those of `generate`.
    """
    answers = model.generate(prompts, "image", **settings)
    counts = [check_spans(answer.ids, model.token_space) for answer in answers]
    spans = sum(max(count, 1) for count, _ in counts)
    return spans, sum(bad if count else 1 for count, bad in counts)


@torch.inference_mode()
def redrawn(model: AnyToAnyModel, images: Tensor) -> Tensor:
    """(B, 3, H, W) -> the same through latents with the flow branch, or through codes: the best that a drawing can be.

    Raises ValueError for a model that does not draw.
    """
    if model.autoencoder is not None:
        return model.autoencoder.decode(model.autoencoder.encode(images)).to(images.device)
    codec = codec_of(model)
    size = (images.shape[2] // codec.reduction, images.shape[3] // codec.reduction)
    return codec.decode(codec.encode(images), size).float().clamp(-1, 1).to(images.device)
