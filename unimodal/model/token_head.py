"""The head that names the next token, and its cross-entropy without the logits of all tokens at once.

Logits are the largest tensor of a step: 16,384 tokens of 81,920 ids are 5.4 GB in float32, and a plain cross-entropy
holds several copies. What a loss reads of them is two numbers a token, so large products are made a part at a time, and
made again in the backward pass (the recomputation of Wijmans et al., arXiv 2411.09009, without its kernel).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unimodal.model.linear import BoundaryLinear

# Shapes: M tokens, D model width, V vocabulary.

LOGITS_AT_ONCE = {"cpu": 2**24, "cuda": 2**28}
"""Logits of one part: 64 MiB in float32 on a CPU, 512 MiB in bfloat16 on a GPU, which needs more tokens to be busy."""

ToLogits = Callable[[Tensor], Tensor]
"""Features (..., D) -> logits (..., V)."""

PLAIN_LOGITS = 2**25
"""Up to so many, autograd keeps what it likes."""

KEPT_LOGITS = {"cpu": 0, "cuda": 2**31}
"""Up to so many logits are kept, once and in the type of the product: the backward pass needs no second product."""


class TokenScores(NamedTuple):
    """What a loss reads of the logits of M tokens, in float32 at least: losses are `log_z - of_targets`."""

    of_targets: Tensor
    """(M,) the logit of each target."""
    log_z: Tensor
    """(M,) the log of the sum of all exponentials."""


class TokenHead(BoundaryLinear):
    """Features (..., D) -> logits (..., V)."""

    def __init__(self, dim: int, vocab_size: int) -> None:
        super().__init__(dim, vocab_size, bias=False)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Tensor, targets: Tensor | None = None, within: Callable[[Tensor, ToLogits], Any] | None = None
    ) -> Any:
        """Logits; with targets (M,) of features (M, D) their `TokenScores`, whose memory does not grow with M * V.

        `within` gets the features and what makes logits of any of them, as often as it likes: a sharded head gathers
        its weight once for all of it, so that ranks may make different numbers of products.
        """
        if within is not None:
            return within(x, super().forward)
        if targets is None:
            return super().forward(x)
        if len(targets) * self.out_features <= PLAIN_LOGITS:
            return plain_scores(super().forward(x), targets)
        return scores_in_parts(x, self.weight, targets)


def plain_scores(logits: Tensor, targets: Tensor) -> TokenScores:
    """logits (M, V), targets (M,)."""
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return TokenScores(exact.gather(-1, targets[:, None]).squeeze(-1), torch.logsumexp(exact, dim=-1))


def scores_in_parts(features: Tensor, weight: Tensor, targets: Tensor, at_once: int | None = None) -> TokenScores:
    """features (M, D), weight (V, D), targets (M,) -> as `plain_scores(features @ weight.T, targets)`.

    `at_once` is the number of logits that exist at a time. Products are made in autocast's type where that is on.
    """
    device = features.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else features.dtype
    keep = at_once is None and len(targets) * len(weight) <= KEPT_LOGITS.get(device, 0)
    rows = max((at_once or LOGITS_AT_ONCE.get(device, 2**24)) // len(weight), 1)
    with torch.autocast(device, enabled=False):
        return TokenScores(*_ScoresInParts.apply(features, weight, targets, dtype, rows, keep))  # pyright: ignore[reportGeneralTypeIssues]


class _ScoresInParts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, rows: int, keep: bool
    ) -> tuple[Tensor, Tensor]:
        rows = len(targets) if keep else rows
        x, w, forward = features.to(dtype), weight.to(dtype), _kernels(features.device.type).forward
        found, logits = list[TokenScores](), torch.empty(0)
        for part, chosen in zip(x.split(rows), targets.split(rows), strict=True):
            logits = part @ w.T
            found.append(forward(logits, chosen))
        of_targets, log_z = (torch.cat(parts) for parts in zip(*found, strict=True))
        ctx.save_for_backward(features, weight, targets, log_z, logits if keep else None)
        ctx.dtype, ctx.rows = dtype, rows
        return of_targets, log_z

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        features, weight, targets, log_z, kept = ctx.saved_tensors
        x, w, backward = features.to(ctx.dtype), weight.to(ctx.dtype), _kernels(features.device.type).backward
        of_features, of_weight = torch.empty_like(features), torch.zeros_like(weight)
        for start in range(0, len(targets), ctx.rows):
            part = slice(start, start + ctx.rows)
            of_targets, of_log_z = (gradient[part] for gradient in gradients)
            logits = x[part] @ w.T if kept is None else kept
            slope = backward(logits, targets[part], log_z[part], of_targets, of_log_z)
            of_features[part] = slope @ w
            _add_product(of_weight, slope, x[part])
        return of_features, of_weight, None, None, None, None


def _add_product(total: Tensor, slope: Tensor, x: Tensor) -> None:
    """total (V, D) += slope (M, V)^T x (M, D)."""
    if total.dtype == slope.dtype:
        total.addmm_(slope.T, x)
    else:
        total += slope.T @ x


def _slope(logits: Tensor, targets: Tensor, log_z: Tensor, of_targets: Tensor, of_log_z: Tensor) -> Tensor:
    """The gradient of logits (M, V), in their type, from those of their scores (M,)."""
    probabilities = torch.exp(logits.to(log_z.dtype) - log_z[:, None])
    ids = torch.arange(logits.shape[-1], device=logits.device)
    chosen = torch.where(ids == targets[:, None], of_targets[:, None], 0.0)
    return torch.addcmul(chosen, probabilities, of_log_z[:, None]).to(logits.dtype)


def _slope_in_place(logits: Tensor, targets: Tensor, log_z: Tensor, of_targets: Tensor, of_log_z: Tensor) -> Tensor:
    """As `_slope`, with one copy in float32 and without a compiler."""
    slope = logits.to(log_z.dtype, copy=True).sub_(log_z[:, None]).exp_().mul_(of_log_z[:, None])
    slope.scatter_add_(1, targets[:, None], of_targets[:, None].to(slope.dtype))
    return slope.to(logits.dtype)


class _Kernels(NamedTuple):
    forward: Callable[[Tensor, Tensor], TokenScores]
    backward: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


@cache
def _kernels(device: str) -> _Kernels:
    """Compiled on a GPU, so that each pass reads its logits once."""
    if device != "cuda":
        return _Kernels(plain_scores, _slope_in_place)
    return _Kernels(torch.compile(plain_scores), torch.compile(_slope))
