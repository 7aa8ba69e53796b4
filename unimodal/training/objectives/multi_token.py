"""Multi-token prediction: cross-entropy on the tokens after the next one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipelines.batch import PackedBatch
from unimodal.model.branches.base import MediaBatch
from unimodal.model.model import MULTI_TOKEN, UnifiedModel
from unimodal.training.objectives.base import Objective, Prepared, Term, Terms
from unimodal.training.packed_pass import packed_mask

# Shapes: B rows, T tokens, M tokens with a weight, K depths, D model width.


@dataclass(frozen=True, kw_only=True)
class MultiToken(Objective):
    """Term `multi_token` = weight / depths * the sum over depths of cross-entropy (DeepSeek-V3, arXiv 2412.19437, 2.2).

    It is a mean over the step's tokens, as next-token prediction is. A depth is trained where the next token is: there
    a drafter will use it. From the batch number `later_from` on, batches of all ranks counted, `later_weight` takes
    the place of `weight` (DeepSeek-V3: 0.3, then 0.1); 0 is never.
    """

    weight: float = 0.3
    later_weight: float = 0.1
    later_from: int = 0

    def __post_init__(self) -> None:
        if min(self.weight, self.later_weight, self.later_from) < 0:
            raise ValueError(f"the weights of multi-token prediction are at least 0, got {self}")

    @property
    def branch(self) -> str:
        """See `Objective`."""
        return MULTI_TOKEN

    def prepare(self, model: UnifiedModel, batch: PackedBatch, media: MediaBatch, number: int) -> Prepared:
        """The state is the weight of this batch."""
        del model, batch
        later = self.later_from and number >= self.later_from
        return Prepared(media, self.later_weight if later else self.weight)

    def terms(self, model: UnifiedModel, features: Tensor, batch: PackedBatch, state: Any) -> Terms:
        """See `Objective`."""
        head = model.multi_token_head
        assert head is not None
        depths = len(head.depths)
        ahead = shifted(batch, depths)
        embedded = [model.trunk.embedding(ids) for ids in ahead.ids[:depths]]
        found = head(features, embedded, batch.positions, packed_mask(model, batch)).flatten(1, 2)
        index, counted = batch.facts.counted
        losses, weights = features.new_zeros((), dtype=torch.float32), counted.new_zeros(())
        for depth in range(depths):
            of_depth = ahead.weights[depth].flatten()[index] * (counted > 0)
            scores = model.token_head(found[depth][index], ahead.ids[depth + 1].flatten()[index])
            losses = losses + ((scores.log_z - scores.of_targets) * of_depth).sum()
            weights = weights + of_depth.sum()
        return {"multi_token": Term(state / depths * losses, state / depths * weights)}


class Shifted(NamedTuple):
    """What stands further on in the same branch of the same document, never across the media of an image."""

    ids: list[Tensor]
    """[k] (B, T): the token k + 1 places on, the padding id 0 where there is none; K + 1 of them."""
    weights: list[Tensor]
    """[k] (B, T): the loss weight of the token k + 2 places on, 0 where there is none; K of them."""


def shifted(batch: PackedBatch, depths: int) -> Shifted:
    """See `Shifted`. No device is waited for."""
    plain = batch.documents >= 0 if batch.spans is None else (batch.documents >= 0) & (batch.spans == 0)
    follows = (batch.documents[:, 1:] == batch.documents[:, :-1]) & (batch.branches[:, 1:] == batch.branches[:, :-1])
    follows = F.pad(follows & plain[:, 1:] & plain[:, :-1], (0, 1))
    there, ids, weights = follows, list[Tensor](), list[Tensor]()
    for distance in range(1, depths + 2):
        ids.append(torch.where(there, _later(batch.tokens, distance), 0))
        if distance > 1:
            weights.append(torch.where(there, _later(batch.loss_weights, distance - 1), 0))
        there = there & _later(follows, distance)
    return Shifted(ids, weights)


def _later(values: Tensor, distance: int) -> Tensor:
    """(B, T) moved towards the beginning; what is unknown is 0."""
    return F.pad(values[:, distance:], (0, min(distance, values.shape[1])))
