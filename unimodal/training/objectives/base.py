"""Objectives: what a model is trained for, each a set of named terms of the loss."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from data_pipelines.batch import PackedBatch
from tokenizers_vq.media import LATENTS
from unimodal.model.branches.base import MediaBatch
from unimodal.model.model import MULTI_TOKEN, UnifiedModel

# Shapes: B rows, T tokens, D model width.


class Term(NamedTuple):
    """A part of the loss, summed over the tokens of one batch."""

    weighted: Tensor
    """Scalar and differentiable: what is added to the loss."""
    weight: Tensor
    """Scalar: what a log divides by to get a mean."""


Terms = dict[str, Term]
"""By name: text, image, z_loss, flow, ..."""


class Prepared(NamedTuple):
    """Media as they enter the model, and what `Objective.terms` will need of them."""

    media: MediaBatch
    state: Any = None


class Objective:
    """One objective of a run; a subclass is one file, registered by being named in a config."""

    @property
    def branch(self) -> str | None:
        """The branch or head that it trains; None where any model will do."""
        return None

    def prepare(self, model: UnifiedModel, batch: PackedBatch, media: MediaBatch, number: int) -> Prepared:
        """What enters the model.

        `number` counts batches over the run and its ranks: the noise of a batch is a function of it.
        """
        del model, batch, number
        return Prepared(media)

    def terms(self, model: UnifiedModel, features: Tensor, batch: PackedBatch, state: Any) -> Terms:
        """Features (B, T, D) of the batch and what `prepare` left -> named terms."""
        raise NotImplementedError

    def end_step(self, model: UnifiedModel, step: int, *, sound: bool) -> Mapping[str, Tensor]:
        """After the gradients of optimizer step `step` and before its update; what is to be logged.

        All ranks call it. `sound` says whether the step is taken.
        """
        del model, step, sound
        return {}


EXPERTS = "experts"
"""What an objective of a mixture of experts names as its part of the model."""
SETTINGS = {LATENTS: "model.flow", MULTI_TOKEN: "model.multi_token", EXPERTS: "model.trunk.moe"}
"""What gives a model a branch or a head."""


def check_objectives(objectives: Sequence[Objective], parts: Container[str]) -> None:
    """Raise ValueError for an objective whose branch or head the model does not have."""
    for objective in objectives:
        if objective.branch is not None and objective.branch not in parts:
            setting = SETTINGS.get(objective.branch, f"model.{objective.branch}")
            raise ValueError(f"{type(objective).__name__} trains the branch of {objective.branch}: set {setting}")


def total(terms: Terms) -> Tensor:
    """The loss of a batch, summed over its tokens."""
    first, *others = (term.weighted for term in terms.values())
    for other in others:
        first = first + other
    return first
