"""A pass over the rows of a batch, a token or a window of each: as the shapes come, or compiled.

On CUDA compiled steps have fixed shapes: rows are padded to a power of two and attention runs over all slots, so that
`torch.compile` makes one graph of a layer for each power, and whole steps can be recorded (recording.py). On a CPU a
step of a row or two is compiled into loops that read each matrix straight through.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from unimodal.generation.sampling import exact
from unimodal.generation.stepping import EAGER, Stepping, compiled_stepping
from unimodal.model.cache import KVCache
from unimodal.model.inference.compiling import can_build_for_cpu, tag_cache
from unimodal.model.inference.joined import joined
from unimodal.model.inference.layerwise import layer_by_layer
from unimodal.model.inference.matvec import matvec
from unimodal.model.model import UnifiedModel

log = logging.getLogger(__name__)

MAX_MATVEC_ROWS = 2
"""Rows up to which reading matrices straight through is faster than a CPU's matrix kernels."""

# Shapes: R rows, T tokens of each, V vocabulary, D model width.


class Predicted(NamedTuple):
    """What a pass says of its tokens."""

    logits: Tensor
    """(R, T, V), `exact`."""
    features: Tensor
    """(R, T, D) before the heads."""


class Forward(Protocol):
    """tokens, positions, slots (R, T) -> what follows each, over the first R rows of a cache, which is written too.

    `recordable`: a call does the same work on the same memory as the one before, so that a CUDA graph can replay it.
    `stepping` is what stands around it.
    """

    recordable: bool
    stepping: Stepping

    def __call__(self, tokens: Tensor, positions: Tensor, slots: Tensor, cache: KVCache, used: int) -> Predicted:
        """`used` is one past the largest slot."""
        ...


class EagerForward:
    """As many rows and slots as there are."""

    recordable, stepping = False, EAGER

    def __init__(self, model: UnifiedModel) -> None:
        self.model = model

    def __call__(self, tokens: Tensor, positions: Tensor, slots: Tensor, cache: KVCache, used: int) -> Predicted:
        """See `Forward`."""
        view = cache.beginning(len(tokens))
        view.reserve(min(used, cache.slots))
        return _predicted(self.model, tokens, positions, slots, view)


class StaticForward:
    """Rows padded to a power of two, all slots of the cache: a layer is compiled once for each power.

    `options` go to torch.compile. A padding row writes to the last slot of a row, which no answer uses.
    """

    stepping = EAGER

    def __init__(self, model: UnifiedModel, **options: Any) -> None:
        self.model, self.recordable = layer_by_layer(joined(model), **options), model.device.type == "cuda"

    def __call__(self, tokens: Tensor, positions: Tensor, slots: Tensor, cache: KVCache, used: int) -> Predicted:
        """See `Forward`."""
        del used
        rows = len(tokens)
        padding = (0, 0, 0, (1 << (rows - 1).bit_length()) - rows)
        tokens, positions = (torch.nn.functional.pad(x, padding) for x in (tokens, positions))
        slots = torch.nn.functional.pad(slots, padding, value=cache.slots - 1)
        cache.grow(len(tokens))
        view = cache.beginning(len(tokens))
        view.reserve(cache.slots)
        return Predicted(*(each[:rows] for each in _predicted(self.model, tokens, positions, slots, view)))


class MatvecForward:
    """For CPUs: a row or two through a compiled step of the first model, more through the second.

    Compiled when the first such step comes, once for one row and once for two; `options` go to torch.compile.
    """

    recordable, stepping = False, EAGER

    def __init__(self, model: UnifiedModel, rest: UnifiedModel, **options: Any) -> None:
        tag_cache()
        self.few, self.many = matvec(model), EagerForward(rest)
        self.function = torch.compile(_fresh_next(), dynamic=True, fullgraph=True, **options)

    def __call__(self, tokens: Tensor, positions: Tensor, slots: Tensor, cache: KVCache, used: int) -> Predicted:
        """See `Forward`."""
        if len(tokens) > MAX_MATVEC_ROWS or tokens.shape[1] > 1:
            return self.many(tokens, positions, slots, cache, used)
        view = cache.beginning(len(tokens))
        view.reserve(min(used, cache.slots))
        return Predicted(*self.function(self.few, tokens[:, 0], positions[:, 0], slots[:, 0], view))


def compiled_forward(model: UnifiedModel, rest: UnifiedModel) -> Forward:
    """The compiled steps of the device that the weights are on; uncompiled ones where nothing can be compiled."""
    if model.device.type != "cpu":
        return StaticForward(model)
    if model.config.trunk.moe:
        return EagerForward(rest)  # which experts a token takes is another graph for each token
    if can_build_for_cpu():
        forward = MatvecForward(model, rest)
        forward.stepping = compiled_stepping()
        return forward
    log.warning("no working C++ compiler with Python headers: decoding runs uncompiled")
    return EagerForward(rest)


def _predicted(model: UnifiedModel, tokens: Tensor, positions: Tensor, slots: Tensor, cache: KVCache) -> Predicted:
    features = model(tokens, positions, cache=cache, slots=slots)
    return Predicted(exact(model.token_head(features)), features)


def _next(
    model: UnifiedModel, tokens: Tensor, positions: Tensor, slots: Tensor, cache: KVCache
) -> tuple[Tensor, Tensor]:
    """One token of each row (R,) -> logits (R, 1, V) and features (R, 1, D)."""
    features = model(tokens[:, None], positions[:, None], cache=cache, slots=slots[:, None])
    return exact(model.token_head(features[:, 0]))[:, None], features


def _fresh_next() -> Callable[[UnifiedModel, Tensor, Tensor, Tensor, KVCache], tuple[Tensor, Tensor]]:
    """`_next` with a code object of its own: for one, torch.compile makes so many graphs and then gives up."""
    return FunctionType(_next.__code__.replace(), globals(), "next")
