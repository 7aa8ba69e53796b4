"""One more forward pass over some rows of a batch, uncompiled and without dropout, of which everything is kept that the
monitors read. Training itself is left alone: its compiled blocks keep nothing, and its random numbers stay where they
were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from data_pipelines.batch import PackedBatch
from unimodal.model.branches.base import MediaBatch
from unimodal.model.feedforward.moe import MixtureOfExperts
from unimodal.model.inference.compiling import uncompiled
from unimodal.model.masks import dense_mask
from unimodal.model.model import UnifiedModel
from unimodal.model.sharded import reshard

# Shapes: B rows, T tokens of a row, H query heads, K key/value heads, W head width, D model width, L layers.

QUERIES_AT_ONCE = 1024
"""Of one head, whose scores exist at a time."""

MAX_TOKENS = 4096
"""Of a row. Of longer ones only the first is read, and of it the documents that end within that: scores are dense."""


class Observed(NamedTuple):
    """What a pass over the rows of a batch left."""

    batch: PackedBatch
    output: Tensor
    """(B, T, D): of the last layer, before the last norm."""
    features: Tensor
    """(B, T, D): what the heads read."""
    attention: Tensor
    """(L,) float32: the largest score of each layer, over all heads and all pairs of tokens that attend."""


@dataclass(frozen=True, kw_only=True)
class Observer:
    """Passes over the first `rows` rows of a batch; `precision` is what training computes in."""

    model: UnifiedModel
    rows: int
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext

    def sample(self, batch: PackedBatch) -> PackedBatch:
        """The rows, on the device of the batch, with facts of their own."""
        rows = _moved(batch.rows(0, self.rows), torch.device("cpu"))
        if rows.tokens.shape[1] > MAX_TOKENS:
            rows = first_tokens(rows.rows(0, 1), MAX_TOKENS)
        return rows.to(batch.tokens.device)

    @torch.no_grad()
    def observe(self, batch: PackedBatch, media: MediaBatch) -> Observed:
        """A pass over a sample, with media as they enter the model."""
        kept: list[Tensor] = []
        scores = AttentionScores(batch.documents >= 0)
        trunk, spans = self.model.trunk, batch.spans
        hooks = [
            trunk.norm.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0])),
            trunk.register_forward_pre_hook(lambda *_: scores.start()),
            trunk.register_forward_hook(lambda *_: scores.stop(), always_call=True),
        ]
        try:
            with self.quietly():
                mask = dense_mask(batch.documents, batch.branches, spans)
                features = self.model(batch.tokens, batch.positions, mask, media=media)
        finally:
            for hook in hooks:
                hook.remove()
        return Observed(batch, kept[0], features, torch.stack(scores.largest))

    @contextmanager
    def quietly(self) -> Iterator[None]:
        """Uncompiled, without dropout, in the run's precision; the model trains on afterwards, as sharded as it was."""
        training = self.model.training
        self.model.eval()
        try:
            with uncompiled(self.model), self.precision():
                yield
        finally:
            self.model.train(training)
            reshard(self.model)
            for part in self.model.modules():
                if isinstance(part, MixtureOfExperts):
                    part.routing = None


class AttentionScores(TorchFunctionMode):
    """Notes the largest score of each attention inside; `real` (B, T) says which tokens are not padding."""

    def __init__(self, real: Tensor) -> None:
        super().__init__()
        self.real, self.largest = real, list[Tensor]()
        self._running = False

    def start(self) -> None:
        """From here on."""
        self._running = True
        self.__enter__()

    def stop(self) -> None:
        """Up to here."""
        if self._running:
            self._running = False
            self.__exit__(None, None, None)

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self.largest.append(largest_score(args[0], args[1], kwargs["attn_mask"], self.real))
        return func(*args, **kwargs)


def largest_score(queries: Tensor, keys: Tensor, bias: Tensor, real: Tensor) -> Tensor:
    """queries (B, H, T, W), keys (B, K, T, W), bias (B or 1, 1, T, T) of 0 and -inf, real (B, T) -> scalar float32.

    The largest q k / sqrt(W) of the tokens that are not padding and what they attend to; products in float32.
    """
    found = [torch.full((), float("-inf"), device=queries.device)]
    groups = queries.unflatten(1, (keys.shape[1], -1))
    for start in range(0, queries.shape[2], QUERIES_AT_ONCE):
        part = slice(start, start + QUERIES_AT_ONCE)
        hidden = bias[:, 0, part].isneginf() | ~real[:, part, None]
        for head in range(keys.shape[1]):
            asking = groups[:, head, :, part].float() * queries.shape[-1] ** -0.5
            scores = asking @ keys[:, head, None].float().mT
            found.append(scores.masked_fill_(hidden[:, None], float("-inf")).amax())
    return torch.stack(found).amax()


def first_tokens(batch: PackedBatch, count: int) -> PackedBatch:
    """Of a batch of one row: the documents that end within its first `count` tokens. One that is longer is cut, unless
    it holds media."""
    documents = batch.documents[0]
    if len(documents) <= count:
        return batch
    ends = (documents[: count + 1].diff() != 0).nonzero().flatten() + 1
    if not len(ends) and batch.media:
        return batch
    width = int(ends[-1]) if len(ends) else count
    values = {item.name: getattr(batch, item.name) for item in fields(batch)}
    columns: dict[str, Any] = {name: x[:, :width] for name, x in values.items() if isinstance(x, Tensor)}
    media = {name: packed.between(0, width) for name, packed in batch.media.items()}
    return replace(batch, **columns, media={name: packed for name, packed in media.items() if packed.grids})


def _moved(batch: PackedBatch, device: torch.device) -> PackedBatch:
    """On another device, without asking for facts, which only a CPU finds."""
    values = {item.name: getattr(batch, item.name) for item in fields(batch)}
    tensors: dict[str, Any] = {name: x.to(device) for name, x in values.items() if isinstance(x, Tensor)}
    media = {name: packed.map(lambda tensor: tensor.to(device)) for name, packed in batch.media.items()}
    return replace(batch, **tensors, media=media)
