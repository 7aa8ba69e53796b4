"""The matrices of all experts, and the products of tokens with those of their experts, in four forms.

by_batches    tokens of each expert side by side, filled up, one batched product        CPUs while training
by_segments   tokens sorted by expert, one product for each                              CPUs otherwise
by_groups     the same as one grouped product                                            CUDA in bfloat16
by_all        every token through every expert, then weighed    elsewhere, where the host must not wait
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimodal.model.config import INIT_STD
from unimodal.model.permuted import Permuted, RowsPicked, RowsSpread

ROW_MULTIPLE = 64
"""Of which the rows of an expert are a multiple while training: oneDNN makes code for every new size of a product, and
that takes longer than the product. Experts have other numbers of tokens in every step (docs/log.md, 2026-11-30)."""
FILLED_UP = 2.0
"""Batches may have at most so many times the rows that tokens need: a lopsided load is multiplied in segments."""

# Shapes: N tokens, K experts of each, E experts, D model width, H width of an expert.


class Experts(nn.Module):
    """E times down(silu(gate(x)) * up(x)), stacked: gate and up (E, H, D), down (E, D, H)."""

    def __init__(self, count: int, dim: int, hidden_dim: int, residual_std: float) -> None:
        super().__init__()
        self.residual_std = residual_std
        self.gate_proj = nn.Parameter(torch.empty(count, hidden_dim, dim))
        self.up_proj = nn.Parameter(torch.empty(count, hidden_dim, dim))
        self.down_proj = nn.Parameter(torch.empty(count, dim, hidden_dim))
        self.products: Products | None = None

    def init_weights(self) -> None:
        """As dense feed-forward parts start."""
        nn.init.normal_(self.gate_proj, std=INIT_STD)
        nn.init.normal_(self.up_proj, std=INIT_STD)
        nn.init.normal_(self.down_proj, std=self.residual_std)

    def forward(self, x: Tensor, selected: Tensor, gates: Tensor) -> Tensor:
        """x (N, D), experts (N, K) and their weights (N, K) -> (N, D)."""
        dtype = _product_dtype(x)
        products = self.products or usual_products(x.device, dtype)
        return products(self, x.to(dtype), selected, gates)


Products = Callable[[Experts, Tensor, Tensor, Tensor], Tensor]
"""Experts, x (N, D), selected (N, K), gates (N, K) -> (N, D)."""


def usual_products(device: torch.device, dtype: torch.dtype) -> Products:
    """The form for a device and the type in which it multiplies."""
    if device.type == "cpu":
        return _on_cpu
    return by_groups if dtype == torch.bfloat16 else by_all


def _product_dtype(x: Tensor) -> torch.dtype:
    """That of autocast, to which all products would cast their tokens one by one."""
    return torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype


def by_segments(experts: Experts, x: Tensor, selected: Tensor, gates: Tensor) -> Tensor:
    """See above; the counts are asked for, which on a CPU costs nothing."""
    return in_segments(experts, x, selected, gates, _counts(experts, selected).tolist())


def by_batches(experts: Experts, x: Tensor, selected: Tensor, gates: Tensor) -> Tensor:
    """See above; in segments where one expert has far more tokens than the others."""
    counts = _counts(experts, selected)
    rows = _filled_up(int(counts.max()))
    if rows * len(counts) > FILLED_UP * max(selected.numel(), ROW_MULTIPLE * len(counts)):
        return in_segments(experts, x, selected, gates, counts.tolist())
    return in_expert_batches(experts, x, selected, gates, rows)


def _usual_on_cpu(experts: Experts, x: Tensor, selected: Tensor, gates: Tensor) -> Tensor:
    products = by_batches if torch.is_grad_enabled() else by_segments
    return products(experts, x, selected, gates)


_on_cpu: Products = torch.compiler.disable(_usual_on_cpu)  # pyright: ignore[reportAssignmentType]


def in_expert_batches(experts: Experts, x: Tensor, selected: Tensor, gates: Tensor, rows: int) -> Tensor:
    """With `rows` for each expert, at least as many as it has tokens."""
    count, flat = len(experts.gate_proj), selected.flatten()
    order = flat.argsort(stable=True)
    counts, device = _counts(experts, selected), x.device
    behind = torch.arange(count, device=device) * rows - (counts.cumsum(0) - counts)  # the gaps before each expert's
    slots = torch.empty_like(order)
    slots[order] = torch.arange(len(order), device=device) + behind[flat[order]]
    spread = torch.zeros(count * rows, dtype=torch.int64, device=device)  # token 0 fills up: nothing uses it
    spread[slots] = torch.arange(len(slots), device=device) // selected.shape[1]
    tokens: Tensor = RowsSpread.apply(x, spread, slots.view_as(selected))  # pyright: ignore[reportAssignmentType]
    tokens = tokens.unflatten(0, (count, rows))
    hidden = F.silu(tokens @ experts.gate_proj.mT) * (tokens @ experts.up_proj.mT)
    made: Tensor = RowsPicked.apply((hidden @ experts.down_proj.mT).flatten(0, 1), slots)  # pyright: ignore[reportAssignmentType]
    return _weighed(made, gates)


def in_even_batches(experts: Experts, x: Tensor, selected: Tensor, gates: Tensor) -> Tensor:
    """As if all experts were equally busy, for tensors without numbers: what a plan of memory runs."""
    return in_expert_batches(experts, x, selected, gates, _filled_up(-(-selected.numel() // len(experts.gate_proj))))


def in_segments(experts: Experts, x: Tensor, selected: Tensor, gates: Tensor, counts: Sequence[int]) -> Tensor:
    """With so many tokens for each expert."""
    sorted_tokens, inverse = _sorted(x, selected)
    made = [
        _of_few_sizes(part, matrices)
        for part, *matrices in zip(
            sorted_tokens.split(list(counts)),
            experts.gate_proj.unbind(),
            experts.up_proj.unbind(),
            experts.down_proj.unbind(),
            strict=True,
        )
        if len(part) or torch.is_grad_enabled()  # without tokens an expert's gradient is 0, not missing
    ]
    return _weighed(_back(torch.cat(made), inverse), gates)


def _of_few_sizes(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Rows of zeros fill a segment up while training."""
    missing = _filled_up(len(x)) - len(x) if torch.is_grad_enabled() else 0
    return _swiglu(F.pad(x, (0, 0, 0, missing)), *matrices)[: len(x)]


def by_groups(experts: Experts, x: Tensor, selected: Tensor, gates: Tensor) -> Tensor:
    """See above; no device is waited for."""
    ordered, inverse = _sorted(x.bfloat16(), selected)
    ends = _counts(experts, selected).cumsum(0, dtype=torch.int32)
    gate, up, down = (weight.bfloat16().mT for weight in (experts.gate_proj, experts.up_proj, experts.down_proj))
    hidden = F.silu(F.grouped_mm(ordered, gate, offs=ends)) * F.grouped_mm(ordered, up, offs=ends)
    return _weighed(_back(F.grouped_mm(hidden, down, offs=ends), inverse), gates)


def by_all(experts: Experts, x: Tensor, selected: Tensor, gates: Tensor) -> Tensor:
    """See above; costs as many experts as there are."""
    weights = gates.new_zeros(len(x), len(experts.gate_proj)).scatter(1, selected, gates)
    hidden = F.silu(torch.einsum("nd,ehd->neh", x, experts.gate_proj)) * torch.einsum("nd,ehd->neh", x, experts.up_proj)
    return torch.einsum("neh,edh,ne->nd", hidden, experts.down_proj, weights.to(hidden.dtype))


def _swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


def _sorted(x: Tensor, selected: Tensor) -> tuple[Tensor, Tensor]:
    """(N, D), (N, K) -> tokens (N * K, D) sorted by expert, each K times, and where each came to stand (N * K,)."""
    order = selected.flatten().argsort(stable=True)
    inverse = order.argsort()
    each = x[:, None].expand(-1, selected.shape[1], -1).flatten(0, 1)
    return Permuted.apply(each, order, inverse), inverse  # pyright: ignore[reportReturnType]


def _back(made: Tensor, inverse: Tensor) -> Tensor:
    """Outputs (N * K, D) in sorted order -> in the order of tokens."""
    return Permuted.apply(made, inverse, inverse.argsort())  # pyright: ignore[reportReturnType]


def _weighed(made: Tensor, gates: Tensor) -> Tensor:
    """Outputs (N * K, D), weighed by gates (N, K) -> (N, D)."""
    return (made.unflatten(0, gates.shape) * gates[..., None].to(made.dtype)).sum(1)


def _counts(experts: Experts, selected: Tensor) -> Tensor:
    """Tokens of each expert (E,), int32; no device is waited for."""
    ones = torch.ones_like(selected, dtype=torch.int32).flatten()
    return ones.new_zeros(len(experts.gate_proj)).index_add_(0, selected.flatten(), ones)


def _filled_up(rows: int) -> int:
    return -(-rows // ROW_MULTIPLE) * ROW_MULTIPLE
