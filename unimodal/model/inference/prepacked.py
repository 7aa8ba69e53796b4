"""Weights in the order in which a CPU's matrix kernels read them: the same function, decoded faster.

oneDNN reorders a weight matrix at every product unless that was done beforehand. For the few rows of a decoding step
the reordering costs more than the product itself, and every product costs a little by itself: so matrices that read the
same input are joined as well (docs/log.md, 2026-11-24).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimodal.model.block import PreNormBlock
from unimodal.model.context import Route
from unimodal.model.feedforward.dense import FeedForward
from unimodal.model.inference.joined import JoinedFeedForward, JoinedQKV, LinearsAsOne
from unimodal.model.mixture import MixtureBlock, MixtureNorm
from unimodal.model.model import TOKENS, UnifiedModel

ROWS_HINT = 8
"""The number of rows that the order is chosen for; it serves others too."""

MIN_ROWS = 4
"""Fewer rows are padded to this many: the product is slower below it."""


class PrepackedLinear(LinearsAsOne):
    """Linear layers that read the same input, as one whose weight has been reordered; for inference.

    All of them have a bias or none has.
    """

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        super().__init__()
        weight = torch.cat([linear.weight.detach() for linear in linears])
        biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
        self.bias = torch.cat(biases) if biases else None
        self.out_features, self.in_features = weight.shape
        self.order = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS_HINT)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        rows = x.reshape(-1, self.in_features)
        count = rows.shape[0]
        if count < MIN_ROWS:
            padding = rows[:1].expand(MIN_ROWS - count, -1)
            rows = torch.cat([rows, padding])
        out = torch.ops.mkldnn._linear_pointwise(rows, self.order, self.bias, "none", [], "")
        return out[:count].view(*x.shape[:-1], self.out_features)


class PrepackedRMSNorm(nn.Module):
    """RMSNorm as the first half of LayerNorm of (x, -x), which has mean zero and variance mean(x^2).

    torch's RMSNorm is six kernels on a CPU, its LayerNorm one.
    """

    def __init__(self, norm: nn.RMSNorm) -> None:
        super().__init__()
        self.dim, self.eps = norm.normalized_shape[0], norm.eps or torch.finfo(norm.weight.dtype).eps
        self.weight = nn.Parameter(torch.cat([norm.weight, norm.weight]).detach(), requires_grad=False)

    def forward(self, x: Tensor, route: Route | None = None) -> Tensor:
        """(..., dim) -> (..., dim)."""
        assert route is None, "the norm of one expert: a prepacked mixture decodes text"
        both = torch.cat([x, -x], dim=-1)
        return F.layer_norm(both, (2 * self.dim,), self.weight, None, self.eps)[..., : self.dim]


def can_prepack(weight: Tensor) -> bool:
    """Whether this machine has kernels for prepacked weights of this type."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


def prepacked(model: UnifiedModel) -> UnifiedModel:
    """A copy for inference with prepacked weights; the given model itself where this machine cannot prepack.

    Of a mixture only the understanding expert is prepacked: the copy decodes text. Prepacking costs the memory of the
    matrices once more, and later changes of the given model's matrices do not reach the copy.
    """
    if not can_prepack(model.trunk.embedding.weight):
        return model
    shared = {id(parameter): parameter for parameter in model.parameters()}
    with torch.no_grad():
        copied = copy.deepcopy(model, shared).eval()  # pyright: ignore[reportArgumentType]
        for block in copied.trunk.blocks:
            _prepack_block(block.understanding if isinstance(block, MixtureBlock) else block)
        norm = copied.trunk.norm
        prepacked_norm = PrepackedRMSNorm(norm.understanding if isinstance(norm, MixtureNorm) else norm)
        copied.trunk.norm = prepacked_norm  # pyright: ignore[reportAttributeAccessIssue]
        copied.heads[TOKENS] = PrepackedLinear([copied.token_head])
    return copied


def _prepack_block(block: nn.Module) -> None:
    """Replace the parts of a block by their prepacked forms."""
    assert isinstance(block, PreNormBlock)
    replaced: dict[str, nn.Module] = {
        "attention.qkv": JoinedQKV(block.attention.qkv, PrepackedLinear),
        "attention.o_proj": PrepackedLinear([block.attention.o_proj]),
        "attention_norm": PrepackedRMSNorm(block.attention_norm),
        "feed_forward_norm": PrepackedRMSNorm(block.feed_forward_norm),
        "dropout": nn.Identity(),
    }
    if isinstance(block.feed_forward, FeedForward):
        replaced["feed_forward"] = JoinedFeedForward(block.feed_forward, PrepackedLinear)
    elif (shared := block.feed_forward.shared) is not None:
        replaced["feed_forward.shared"] = JoinedFeedForward(shared, PrepackedLinear)
    for name, module in replaced.items():
        block.set_submodule(name, module)
