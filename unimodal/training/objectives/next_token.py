"""Next-token prediction: cross-entropy on text and image codes, and Chameleon's z-loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_pipelines.batch import PackedBatch
from tokenizers_vq.token_space import Modality
from unimodal.model.model import UnifiedModel
from unimodal.training.objectives.base import Objective, Term, Terms

COUNTED_MULTIPLE = 1024

# Shapes: B rows, T tokens, M tokens with a weight, D width, V vocabulary.


@dataclass(frozen=True, kw_only=True)
class NextToken(Objective):
    """Terms `text`, `image` and `z_loss` = z_weight * log(Z)^2 (arXiv 2405.09818, section 2.3)."""

    z_weight: float = 1e-5

    def __post_init__(self) -> None:
        if self.z_weight < 0:
            raise ValueError(f"the weight of the z-loss is at least 0, got {self.z_weight}")

    def terms(self, model: UnifiedModel, features: Tensor, batch: PackedBatch, state: Any) -> Terms:
        """See `Objective`."""
        del state
        return next_token_terms(
            features, model.token_head, batch.targets, batch.loss_weights, batch.modality, self.z_weight
        )


class CountedTokens(NamedTuple):
    """Tokens that have a weight: their indices (M,) into the flattened batch, and their weights (M,)."""

    index: Tensor
    weights: Tensor


def counted_tokens(weights: Tensor) -> CountedTokens:
    """weights (B, T) -> the tokens that count, filled up with weight 0 to a multiple of COUNTED_MULTIPLE.

    The logits are the largest tensor of a step. Were their size another one in every step, the C library's heap would
    break into pieces and grow without end (docs/log.md, 2026-11-23).
    """
    flat = weights.flatten()
    index = flat.nonzero().squeeze(-1)
    fill = min(-len(index) % COUNTED_MULTIPLE, len(flat) - len(index))
    return CountedTokens(F.pad(index, (0, fill)), F.pad(flat[index], (0, fill)))


def next_token_terms(
    features: Tensor, head: nn.Module, targets: Tensor, weights: Tensor, modality: Tensor, z_weight: float
) -> Terms:
    """features (B, T, D) before the head; targets, weights, modality (B, T), already shifted -> terms.

    The head runs only where a weight is not 0.
    """
    counted = counted_tokens(weights)
    logits = head(features.flatten(0, 1)[counted.index]).float()
    targets, weights, modality = targets.flatten()[counted.index], counted.weights, modality.flatten()[counted.index]
    log_z = torch.logsumexp(logits, dim=-1)
    losses = (log_z - logits.gather(-1, targets[:, None]).squeeze(-1)) * weights
    of_text, of_image = modality == int(Modality.TEXT), modality == int(Modality.IMAGE)
    return {
        "text": Term((losses * of_text).sum(), (weights * of_text).sum()),
        "image": Term((losses * of_image).sum(), (weights * of_image).sum()),
        "z_loss": Term(z_weight * (log_z.square() * weights).sum(), weights.sum()),
    }
