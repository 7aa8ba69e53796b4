"""Products of one row or two on a GPU, as fast as the weights can be read.

A step of decoding reads every matrix once and multiplies it with a row or two. cuBLAS reads a matrix for that at 2.1 to
2.8 TB/s on an H100, these kernels at 2.5 to 3.1, where a copy reaches 3.0 (docs/log.md, 2026-11-27). A program takes a
few rows of the matrix and runs along them; sums are in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

triton: Any
tl: Any
try:
    import triton
    import triton.language as tl

    jit = triton.jit
except ImportError:  # builds of torch without CUDA bring none
    triton = tl = None

    def jit(function: Any) -> Any:
        """Nothing to compile with."""
        return function


MAX_ROWS = 2
"""Rows up to which the kernels are made; more go through matrix units."""

ELEMENTS, WIDTHS = (16_384, 8_192), (2_048, 1_024)
"""Numbers of a matrix that one program multiplies, about, and columns that it takes at a time: for one row and two."""


def can_stream(x: Tensor, weight: Tensor) -> bool:
    """Whether x (..., I) and weight (O, I) are what the kernels are made for: a row or two of half precision, CUDA."""
    few = x.numel() <= MAX_ROWS * x.shape[-1]
    return bool(few and triton and x.is_cuda and x.dtype == weight.dtype and x.dtype in (torch.bfloat16, torch.float16))


def streamed(x: Tensor, weight: Tensor, *, gated: bool = False) -> Tensor:
    """x (..., I), one row or two, and weight (O, I) -> (..., O).

    `gated`: the first half of O is the gate of the second, silu(gate) * up: (..., O / 2).
    """
    columns = weight.shape[1]
    rows, outputs = x.numel() // columns, weight.shape[0] // 2 if gated else weight.shape[0]
    out = torch.empty(*x.shape[:-1], outputs, dtype=x.dtype, device=x.device)
    height = 1 << (max(1, ELEMENTS[rows - 1] // columns).bit_length() - 1)
    warps = 2 if rows == 2 else 8 if height == 1 else 4
    width = WIDTHS[0] if height == 1 else WIDTHS[rows - 1]
    kernel = _gated_product if gated else _product
    kernel[(-(-outputs // height),)](
        weight, x.contiguous(), out, outputs, columns, rows, height, width, num_warps=warps
    )
    return out


@jit
def _product(weight, x, out, outputs, columns, ROWS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):  # pyright: ignore
    row = tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT)
    first, second = _along(weight, x, row, outputs, columns, ROWS, HEIGHT, WIDTH)
    tl.store(out + row, first.to(out.dtype.element_ty), mask=row < outputs)
    if ROWS == 2:
        tl.store(out + outputs + row, second.to(out.dtype.element_ty), mask=row < outputs)


@jit
def _gated_product(weight, x, out, outputs, columns, ROWS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):  # pyright: ignore
    row = tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT)
    gate, gate_2 = _along(weight, x, row, outputs, columns, ROWS, HEIGHT, WIDTH)
    up, up_2 = _along(weight, x, outputs + row, 2 * outputs, columns, ROWS, HEIGHT, WIDTH)
    tl.store(out + row, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=row < outputs)
    if ROWS == 2:
        both = (gate_2 * tl.sigmoid(gate_2) * up_2).to(out.dtype.element_ty)
        tl.store(out + outputs + row, both, mask=row < outputs)


@jit
def _along(weight, x, row, outputs, columns, ROWS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):  # pyright: ignore
    """(HEIGHT,) sums of the first row of x, and of the second where there are two."""
    column = tl.arange(0, WIDTH)
    first = tl.zeros((HEIGHT, WIDTH), tl.float32)
    second = tl.zeros((HEIGHT, WIDTH), tl.float32)
    start_of = weight + row[:, None].to(tl.int64) * columns + column[None, :]
    for start in range(0, columns, WIDTH):
        inside = start + column < columns
        tile = tl.load(
            start_of + start,
            mask=inside[None, :] & (row[:, None] < outputs),
            other=0.0,
            eviction_policy="evict_first",
        ).to(tl.float32)
        first += tile * tl.load(x + start + column, mask=inside, other=0.0).to(tl.float32)[None, :]
        if ROWS == 2:
            second += tile * tl.load(x + columns + start + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    return tl.sum(first, 1), tl.sum(second, 1)
