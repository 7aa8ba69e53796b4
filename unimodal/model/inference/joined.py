"""Matrices that read the same input, joined into one: fewer and larger products for the few rows of a decoding step.

Queries, keys and values are one product, gate and up another. A step with few rows is as fast as its weights are read,
and a large matrix is read faster than a small one (docs/log.md, 2026-11-27); for a row or two on a GPU by kernels that
stream it (streaming.py).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimodal.model.attention import HeadLayerNorm, QKVProjection, QueriesKeysValues
from unimodal.model.block import PreNormBlock
from unimodal.model.context import Rotation
from unimodal.model.feedforward.dense import FeedForward
from unimodal.model.inference.streaming import can_stream, streamed
from unimodal.model.mixture import MixtureBlock
from unimodal.model.model import TOKENS, UnifiedModel
from unimodal.model.rope import rotate


class LinearsAsOne(nn.Module):
    """Linear layers that read the same input, as one: (..., I) -> (..., sum of their outputs)."""

    def gated(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., half of the outputs): silu of the first half, times the second."""
        gate, up = self(x).chunk(2, dim=-1)
        return F.silu(gate) * up


Join = Callable[[Sequence[nn.Linear]], LinearsAsOne]
"""Makes one of several."""


class JoinedLinear(LinearsAsOne):
    """One linear layer or more that read the same input, as one; their weights become parts of its own.

    So nothing is held twice, and whatever is written into a part later is written into the whole. All of them have a
    bias or none has.
    """

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = _joined([linear.weight for linear in linears])
        biases = [linear.bias for linear in linears if linear.bias is not None]
        self.bias = _joined(biases) if biases else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if self.bias is None and can_stream(x, self.weight):
            return streamed(x, self.weight)
        return F.linear(x, self.weight, self.bias)

    def gated(self, x: Tensor) -> Tensor:
        """See `LinearsAsOne`; in one kernel where the weight is streamed."""
        if self.bias is None and can_stream(x, self.weight):
            return streamed(x, self.weight, gated=True)
        return super().gated(x)


def _joined(parts: Sequence[Tensor]) -> nn.Parameter:
    if len(parts) == 1 and isinstance(parts[0], nn.Parameter):
        return parts[0]
    whole = torch.cat([part.detach() for part in parts])
    for part, view in zip(parts, whole.split([len(part) for part in parts]), strict=True):
        part.data = view
    return nn.Parameter(whole, requires_grad=False)


class JoinedQKV(nn.Module):
    """Queries, keys and values with one product, and one rotation for queries and keys."""

    def __init__(self, qkv: QKVProjection, join: Join) -> None:
        super().__init__()
        self.head_dim = qkv.head_dim
        self.num_heads = qkv.q_proj.out_features // self.head_dim
        self.num_kv_heads = qkv.k_proj.out_features // self.head_dim
        self.qkv_proj = join([qkv.q_proj, qkv.k_proj, qkv.v_proj])
        self.qk_norm = _joined_norm(qkv.q_norm, qkv.k_norm, self.num_heads)

    def forward(self, x: Tensor, rotation: Rotation | None = None) -> QueriesKeysValues:
        """As `QKVProjection`."""
        heads = self.qkv_proj(x).unflatten(-1, (-1, self.head_dim))
        together, values = heads.split([self.num_heads + self.num_kv_heads, self.num_kv_heads], dim=-2)
        together = self.qk_norm(together)
        together = together if rotation is None else rotate(together, *rotation)
        queries, keys = together.split([self.num_heads, self.num_kv_heads], dim=-2)
        return queries, keys, values


class JoinedFeedForward(nn.Module):
    """SwiGLU with one product for gate and up."""

    def __init__(self, feed_forward: FeedForward, join: Join) -> None:
        super().__init__()
        self.gate_up_proj = join([feed_forward.gate_proj, feed_forward.up_proj])
        self.down_proj = join([feed_forward.down_proj])

    def forward(self, x: Tensor, kinds: Tensor | None = None) -> Tensor:
        """(..., dim) -> (..., dim)."""
        del kinds
        return self.down_proj(self.gate_up_proj.gated(x))


class NormsApart(nn.Module):
    """A norm for the first heads and another for the rest."""

    def __init__(self, first: nn.Module, rest: nn.Module, num_first: int) -> None:
        super().__init__()
        self.first, self.rest, self.num_first = first, rest, num_first

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, heads, W) -> the same shape."""
        first, rest = x.tensor_split([self.num_first], dim=-2)
        return torch.cat([self.first(first), self.rest(rest)], dim=-2)


def _joined_norm(queries: nn.Module, keys: nn.Module, num_heads: int) -> nn.Module:
    """One norm over the heads of queries and keys together."""
    if isinstance(queries, nn.Identity) and isinstance(keys, nn.Identity):
        return nn.Identity()
    if not (isinstance(queries, HeadLayerNorm) and isinstance(keys, HeadLayerNorm)):
        return NormsApart(queries, keys, num_heads)
    joined = HeadLayerNorm(len(queries.weight) + len(keys.weight), queries.weight.shape[1], queries.eps)
    joined.weight = nn.Parameter(torch.cat([queries.weight, keys.weight]), requires_grad=False)
    joined.bias = nn.Parameter(torch.cat([queries.bias, keys.bias]), requires_grad=False)
    return joined


def joined(model: UnifiedModel) -> UnifiedModel:
    """A copy for decoding whose blocks have joined matrices, without more memory; a model that trains as it is.

    The understanding expert of a mixture is joined: decoding of ids goes through it alone.
    """
    if any(parameter.requires_grad for parameter in model.parameters()):
        return model
    shared = {id(parameter): parameter for parameter in model.parameters()}
    copied = copy.deepcopy(model, shared).eval()  # pyright: ignore[reportArgumentType]
    for block in copied.trunk.blocks:
        block = block.understanding if isinstance(block, MixtureBlock) else block
        assert isinstance(block, PreNormBlock)
        block.set_submodule("attention.qkv", JoinedQKV(block.attention.qkv, JoinedLinear))
        block.set_submodule("attention.o_proj", JoinedLinear([block.attention.o_proj]))
        if isinstance(block.feed_forward, FeedForward):
            block.set_submodule("feed_forward", JoinedFeedForward(block.feed_forward, JoinedLinear))
    copied.heads[TOKENS] = JoinedLinear([copied.token_head])
    return copied
