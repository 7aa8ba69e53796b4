"""The losses of one optimizer step, summed over its batches and ranks."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from data_pipelines.batch import MIN_WEIGHT
from unimodal.training.objectives.base import Terms, total

LEARNT_TERMS = ("text", "image", "flow")
"""Terms that learn tokens, and do not regularise."""


class StepLosses(NamedTuple):
    """What an optimizer step logs: means over the tokens of all its batches and ranks."""

    weight: Tensor
    """The summed weight of all tokens, float64."""
    loss: Tensor
    terms: dict[str, Tensor]
    shares: dict[str, Tensor]
    """Of LEARNT_TERMS that have a loss: the share of the tokens' weight that lies on each."""


class StepSums:
    """The losses of an optimizer step, summed over its batches where they lie; ranks add theirs once a step.

    The names of the terms are the same in every batch and on every rank.
    """

    def __init__(self) -> None:
        self.batches = 0
        self._names: tuple[str, ...] = ()
        self._sums: Tensor | None = None
        self._dtype = torch.float32

    def add(self, terms: Terms, weight: Tensor) -> None:
        """The terms of a batch, and the summed weight of its tokens."""
        pairs = [number for term in terms.values() for number in (term.weighted, term.weight)]
        sums = torch.stack([number.detach().double() for number in (weight, total(terms), *pairs)])
        self._names, self._dtype = tuple(terms), total(terms).dtype
        self._sums = sums if self._sums is None else self._sums + sums
        self.batches += 1

    def reduced(self) -> StepLosses:
        """The means, the same on all ranks; the sums begin anew."""
        assert self._sums is not None
        sums = self._sums
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        self._sums, self.batches = None, 0
        weight, loss, *pairs = sums.to(self._dtype)
        values = [weighted / of.clamp_min(MIN_WEIGHT) for weighted, of in zip(pairs[::2], pairs[1::2], strict=True)]
        terms = dict(zip(self._names, values, strict=True))
        learnt = {name: of for name, of in zip(self._names, pairs[1::2], strict=True) if name in LEARNT_TERMS}
        whole = sum(learnt.values(), torch.zeros_like(weight)).clamp_min(MIN_WEIGHT)
        shares = {name: of / whole for name, of in learnt.items()}
        return StepLosses(sums[0], loss / weight.clamp_min(MIN_WEIGHT), terms, shares)
