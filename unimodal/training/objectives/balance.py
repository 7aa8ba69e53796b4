"""Balance of a mixture of experts: that all are busy, in sum and for each modality.

A bias moves towards experts that were chosen too rarely, once an optimizer step (DeepSeek-V3, arXiv 2412.19437, section
2.1.2; arXiv 2408.15664); a small term of the loss keeps single documents from leaning on few experts; a z-loss keeps
the router's logits small (ST-MoE, arXiv 2202.08906, section 3.2).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from data_pipelines.batch import PackedBatch
from unimodal.model.feedforward.config import KINDS, MoEConfig
from unimodal.model.feedforward.moe import MixtureOfExperts
from unimodal.model.feedforward.router import Routing
from unimodal.model.model import UnifiedModel
from unimodal.model.transformer import token_kinds
from unimodal.training.objectives.base import EXPERTS, Objective, Term, Terms

log = logging.getLogger(__name__)

# Shapes: L layers with experts, M modalities, E experts, K experts of a token, N tokens of a batch, S documents.

WATCHED_FROM = 200
"""Steps after which a lopsided load is worth a warning."""
LOPSIDED = 4.0
"""Tokens of the busiest expert, by the mean over experts, from which a load is lopsided."""


@dataclass(frozen=True, kw_only=True)
class ExpertBalance(Objective):
    """Terms `balance` = weight * sum over layers of E / K * sum_e f_e P_e, a mean over documents by their weight, and
    `router_z` = z_weight * log(sum exp logits)^2; both are means over tokens. The bias moves by `bias_rate`.

    f_e is the share of a document's choices that fall on expert e, P_e the mean of its share of the scores.
    """

    weight: float = 1e-4
    z_weight: float = 0.0
    bias_rate: float = 1e-3

    def __post_init__(self) -> None:
        if min(self.weight, self.z_weight, self.bias_rate) < 0:
            raise ValueError(f"the weights of a balance are at least 0, got {self}")

    @property
    def branch(self) -> str:
        """See `Objective`."""
        return EXPERTS

    def terms(self, model: UnifiedModel, features: Tensor, batch: PackedBatch, state: Any) -> Terms:
        """See `Objective`. While training the choices of each expert are counted for `end_step`."""
        media = state
        config = model.config.trunk.moe
        assert config is not None
        real, weights = (batch.documents >= 0).flatten(), batch.loss_weights.flatten()
        kinds = _kinds(batch, media, config)
        index = torch.arange(len(real), dtype=torch.int32, device=real.device)
        documents = torch.searchsorted(batch.facts.ends, index, right=True)
        uneven, z_loss = features.new_zeros((), dtype=torch.float32), features.new_zeros((), dtype=torch.float32)
        for part in expert_parts(model):
            routing = part.take()
            chosen = choices(routing, kinds, real, config)
            if model.training:
                part.counts = chosen if part.counts is None else part.counts + chosen
            uneven = uneven + _unevenness(routing, documents, real, weights, len(batch.facts.ends) + 1)
            z_loss = z_loss + (routing.logits.logsumexp(-1).square() * weights).sum()
        weight = weights.sum()
        return {
            "balance": Term(self.weight * uneven, self.weight * weight),
            "router_z": Term(self.z_weight * z_loss, self.z_weight * weight),
        }

    def prepare(self, model: UnifiedModel, batch: PackedBatch, media: Any, number: int) -> Any:
        """The state is where media lie, which are images."""
        prepared = super().prepare(model, batch, media, number)
        return prepared._replace(state=media)

    def end_step(self, model: UnifiedModel, step: int, *, sound: bool) -> Mapping[str, Tensor]:
        """Move the biases by the choices of all batches and ranks; a step that was skipped moves none."""
        parts = expert_parts(model)
        counted = [part.counts for part in parts if part.counts is not None]
        for part in parts:
            part.counts = None
        if len(counted) < len(parts):
            return {}
        counts = torch.stack(counted)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
        if sound and self.bias_rate:
            for part, of_layer in zip(parts, counts, strict=True):
                if part.router.config.bias_by != "none":
                    move_bias(part.router.bias, of_layer, self.bias_rate)
        found = loads(counts)
        self._warn(found, step)
        return found

    def _warn(self, found: Mapping[str, Tensor], step: int) -> None:
        """Now and then, since it has to wait for the device."""
        if step < WATCHED_FROM or step % WATCHED_FROM:
            return
        for name in (f"max_load_{kind}" for kind in KINDS):
            if name in found and (load := float(found[name])) > LOPSIDED:
                log.warning(
                    f"experts: {name.replace('_', ' ')} is {load:.1f} times the mean; a larger bias_rate, or biases by "
                    "modality (moe.bias_by), spread it"
                )


def expert_parts(model: UnifiedModel) -> list[MixtureOfExperts]:
    """Of each layer that has experts."""
    return [module for module in model.modules() if isinstance(module, MixtureOfExperts)]


def choices(routing: Routing, kinds: Tensor, real: Tensor, config: MoEConfig) -> Tensor:
    """(M, E) int64: how often each expert was chosen by the real tokens (N,) of each modality (N,)."""
    index = kinds[:, None] * config.experts + routing.selected
    counts = torch.zeros(len(KINDS) * config.experts, dtype=torch.int64, device=kinds.device)
    each = real.long()[:, None].expand_as(index)
    return counts.index_add_(0, index.flatten(), each.flatten()).view(len(KINDS), -1)


def move_bias(bias: Tensor, counts: Tensor, rate: float) -> None:
    """bias (M or 1, E) += rate * sign(mean(c) - c), less the mean of that, by counts c (M, E), in sum for one bias."""
    counts = counts.double() if len(bias) > 1 else counts.double().sum(0, keepdim=True)
    signs = (counts.mean(-1, keepdim=True) - counts).sign()
    bias += (rate * (signs - signs.mean(-1, keepdim=True))).to(bias.dtype)


def loads(counts: Tensor) -> dict[str, Tensor]:
    """Of counts (L, M, E): the largest load by the mean over experts, of the worst layer, and the smallest entropy as a
    share of its limit; in sum and for each modality that there is.
    """
    found: dict[str, Tensor] = {}
    for name, of_kind in (("", counts.sum(1)), *((f"_{kind}", counts[:, k]) for k, kind in enumerate(KINDS))):
        share = of_kind.double() / of_kind.sum(-1, keepdim=True).clamp_min(1)
        entropy = -(share * share.clamp_min(1e-30).log()).sum(-1) / torch.tensor(share.shape[-1]).log()
        there = (of_kind.sum() > 0).double()
        found[f"max_load{name}"] = share.amax() * share.shape[-1]
        found[f"entropy{name}"] = entropy.amin() * there
    return found


def _kinds(batch: PackedBatch, media: Any, config: MoEConfig) -> Tensor:
    """(N,): modalities of the tokens of a batch, as the trunk finds them."""
    return token_kinds(batch.tokens, list(media.values()), config).flatten()


def _unevenness(routing: Routing, documents: Tensor, real: Tensor, weights: Tensor, count: int) -> Tensor:
    """Sum over documents of weight * E / K * sum_e f_e P_e; their weight where all experts are equally busy."""
    (_, experts), top_k = routing.scores.shape, routing.selected.shape[1]
    weight = real.to(routing.scores.dtype)
    tokens = weight.new_zeros(count).index_add(0, documents, weight).clamp_min(1)
    chosen = torch.zeros_like(routing.scores).scatter_(1, routing.selected, 1.0) * weight[:, None]
    shares = routing.scores / routing.scores.sum(-1, keepdim=True) * weight[:, None]
    f, p = (weight.new_zeros(count, experts).index_add(0, documents, each) for each in (chosen, shares))
    of_documents = weight.new_zeros(count).index_add(0, documents, weights.to(weight.dtype))
    return ((f * p).sum(-1) / tokens.square() * of_documents).sum().float() * experts / top_k
