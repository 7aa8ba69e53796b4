"""Next-token prediction: cross-entropy on text and image codes, and Chameleon's z-loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from data_pipelines.batch import CountedTokens, PackedBatch
from tokenizers_vq.token_space import Modality
from unimodal.model.model import UnifiedModel
from unimodal.model.token_head import TokenHead
from unimodal.training.objectives.base import Objective, Term, Terms

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
        return counted_terms(
            features, model.token_head, batch.targets, batch.facts.counted, batch.modality, self.z_weight
        )


def next_token_terms(
    features: Tensor, head: TokenHead, targets: Tensor, weights: Tensor, modality: Tensor, z_weight: float
) -> Terms:
    """features (B, T, D) before the head; targets, weights, modality (B, T), already shifted -> terms."""
    return counted_terms(features, head, targets, CountedTokens.of(weights), modality, z_weight)


def counted_terms(
    features: Tensor, head: TokenHead, targets: Tensor, counted: CountedTokens, modality: Tensor, z_weight: float
) -> Terms:
    """As `next_token_terms`, with the tokens on which the head runs."""
    index, weights = counted
    scores = head(features.flatten(0, 1)[index], targets.flatten()[index])
    modality = modality.flatten()[index]
    losses = (scores.log_z - scores.of_targets) * weights
    of_text, of_image = modality == int(Modality.TEXT), modality == int(Modality.IMAGE)
    return {
        "text": Term((losses * of_text).sum(), (weights * of_text).sum()),
        "image": Term((losses * of_image).sum(), (weights * of_image).sum()),
        "z_loss": Term(z_weight * (scores.log_z.square() * weights).sum(), weights.sum()),
    }
