"""What drawings are held against: how many image spans are well formed, and the best picture that could be drawn."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from data_pipelines.images import to_tensor
from tokenizers_vq.token_space import TokenSpace
from unimodal.evaluation.contract import AnyToAnyModel, codec_of
from unimodal.generation.modality import check_spans
from unimodal.generation.prompts import Answer, Prompt

# Shapes: B images, H height, W width; images lie in [-1, 1].


def image_span_check(model: AnyToAnyModel, prompts: Sequence[Prompt], **settings: Any) -> tuple[int, int]:
    """(image spans, malformed ones) over drawings of the prompts; one without any image counts as malformed.

    `settings` are those of `generate`.
    """
    return checked_spans(model.generate(prompts, "image", **settings), model.token_space)


def checked_spans(answers: Sequence[Answer], space: TokenSpace) -> tuple[int, int]:
    """See `image_span_check`."""
    counts = [check_spans(answer.ids, space) for answer in answers]
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
    return codec.decode(codec.encode(images), codec.size_of(*images.shape[2:])).float().clamp(-1, 1).to(images.device)


def diversity(prompts: Sequence[str], pictures: Sequence[Image.Image | None]) -> float:
    """How far apart drawings of one prompt are: the root mean square of their pixels' differences, in [0, 1], a mean
    over all pairs of a prompt and then over prompts; 0 where no prompt has two pictures."""
    groups: dict[str, list[Tensor]] = {}
    for prompt, picture in zip(prompts, pictures, strict=True):
        if picture is not None:
            groups.setdefault(prompt, []).append(to_tensor(picture))
    means = []
    for group in groups.values():
        pairs = [pair for pair in combinations(group, 2) if pair[0].shape == pair[1].shape]
        if pairs:
            means.append(fmean(((first - second) / 2).square().mean().sqrt().item() for first, second in pairs))
    return fmean(means) if means else 0.0
