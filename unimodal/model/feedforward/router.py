"""The router of a mixture of experts: which experts a token takes, and with what weight.

Scores are computed in float32. A bias that no gradient reaches is added for the choice alone, and whoever trains the
model moves it after each step so that experts are equally busy (arXiv 2408.15664; training/objectives/balance.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimodal.model.config import INIT_STD
from unimodal.model.feedforward.config import MoEConfig
from unimodal.model.linear import BoundaryLinear, init_linear

# Shapes: N tokens, D model width, E experts, K experts of a token, M bias vectors.

TINY = 1e-20
"""Keeps a sum of gates from being 0 (DeepSeek-V3's public code)."""


class Routing(NamedTuple):
    """What a router decided for its tokens."""

    selected: Tensor
    """(N, K) int64."""
    gates: Tensor
    """(N, K), weights of their outputs."""
    scores: Tensor
    """(N, E), without the bias."""
    logits: Tensor
    """(N, E), of which the scores are made."""


class Router(nn.Module):
    """Scores by one matrix without a bias."""

    bias: Tensor

    def __init__(self, dim: int, config: MoEConfig) -> None:
        super().__init__()
        self.config = config
        self.gate = BoundaryLinear(dim, config.experts, bias=False)
        self.register_buffer("bias", torch.zeros(config.num_biases, config.experts))

    def init_weights(self) -> None:
        """A small matrix, and no bias."""
        init_linear(self.gate, INIT_STD)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, kinds: Tensor | None) -> Routing:
        """x (N, D) and the tokens' modalities (N,), numbers of KINDS, all text where None -> their experts."""
        with torch.autocast(x.device.type, enabled=False):
            exact = torch.promote_types(x.dtype, torch.float32)
            logits = F.linear(x.to(exact), self.gate.weight.to(exact))
            scores = logits.sigmoid() if self.config.scores == "sigmoid" else logits.softmax(-1)
            bias = self.bias[0] if kinds is None or len(self.bias) == 1 else self.bias[kinds]
            selected = (scores.detach() + bias).topk(self.config.top_k, dim=-1).indices
            gates = scores.gather(-1, selected)
            if self.config.normalized:
                gates = gates / (gates.sum(-1, keepdim=True) + TINY)
            return Routing(selected, gates * self.config.scale, scores, logits)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Router:
        """The bias keeps float32: in bfloat16 its steps would be lost."""
        before = self.bias
        super()._apply(fn, recurse)
        if self.bias.dtype != before.dtype and not before.is_meta:
            self.bias = before.to(self.bias.device)
        return self
