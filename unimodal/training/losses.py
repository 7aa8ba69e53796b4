"""Losses of the decoder, as sums: whoever calls divides by the weight of the whole optimizer step."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_vq.token_space import Modality

COUNTED_MULTIPLE = 1024

# Shapes: M tokens with a weight, D width, V vocabulary.


class FlowSums(NamedTuple):
    """Sums over the noised latents of the flow branch: the weighted error, the plain one, and how many there are."""

    weighted: Tensor
    plain: Tensor
    count: Tensor


class LossSums(NamedTuple):
    """Weighted sums over tokens (scalars); `weight` is the sum of weights."""

    text: Tensor
    image: Tensor
    z: Tensor
    weight: Tensor
    text_weight: Tensor
    image_weight: Tensor
    flow: FlowSums | None = None


class _Counted(NamedTuple):
    """Indices of the tokens with a weight, and their weights."""

    index: Tensor
    weights: Tensor


def _counted(weights: Tensor) -> _Counted:
    """weights (N,) -> the tokens that count, filled up with weight 0 to a multiple of COUNTED_MULTIPLE.

    The logits are the largest tensor of a step. Were their size another one in every step, the C library's heap would
    break into pieces and grow without end (docs/log.md, 2026-11-23).
    """
    index = weights.nonzero().squeeze(-1)
    fill = min(-len(index) % COUNTED_MULTIPLE, len(weights) - len(index))
    return _Counted(F.pad(index, (0, fill)), F.pad(weights[index], (0, fill)))


def next_token_losses(
    features: Tensor, head: nn.Module, targets: Tensor, weights: Tensor, modality: Tensor, z_weight: float
) -> LossSums:
    """Cross-entropy by modality, and Chameleon's z-loss: z_weight * log(Z)^2 (arXiv 2405.09818, section 2.3).

    features (B, T, D) before the head; targets, weights, modality (B, T), already shifted. The head runs only where
    a weight is not 0.
    """
    counted = _counted(weights.flatten())
    logits = head(features.flatten(0, 1)[counted.index]).float()
    targets, weights, modality = targets.flatten()[counted.index], counted.weights, modality.flatten()[counted.index]
    log_z = torch.logsumexp(logits, dim=-1)
    losses = (log_z - logits.gather(-1, targets[:, None]).squeeze(-1)) * weights
    of_text, of_image = modality == int(Modality.TEXT), modality == int(Modality.IMAGE)
    return LossSums(
        text=(losses * of_text).sum(),
        image=(losses * of_image).sum(),
        z=z_weight * (log_z.square() * weights).sum(),
        weight=weights.sum(),
        text_weight=(weights * of_text).sum(),
        image_weight=(weights * of_image).sum(),
    )
