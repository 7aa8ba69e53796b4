"""Kernels for a row or two, run by Triton's interpreter where there is no GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from unimodal.model.inference.streaming import can_stream

PRODUCTS = """
import torch
import torch.nn.functional as F
from unimodal.model.inference.streaming import streamed

torch.manual_seed(0)
for outputs, inputs in ((6, 40), (64, 2048), (10, 5000), (34, 1024), (4, 20000)):
    for rows in (1, 2):
        x, weight = torch.randn(rows, 1, inputs), torch.randn(outputs, inputs) / inputs**0.5
        expected = F.linear(x.double(), weight.double())
        gate, up = expected.chunk(2, dim=-1)
        torch.testing.assert_close(streamed(x, weight).double(), expected, rtol=1e-5, atol=2e-6)
        torch.testing.assert_close(streamed(x, weight, gated=True).double(), F.silu(gate) * up, rtol=1e-5, atol=2e-6)
        halves = streamed(x.bfloat16(), weight.bfloat16())
        assert halves.dtype == torch.bfloat16
        torch.testing.assert_close(halves.double(), expected, rtol=0.02, atol=0.03)
"""


def test_the_kernels_compute_products_of_any_shape() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PRODUCTS], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("rows", "dtype", "weight", "expected"),
    [
        (1, torch.bfloat16, torch.bfloat16, True),
        (2, torch.float16, torch.float16, True),
        (3, torch.bfloat16, torch.bfloat16, False),
        (1, torch.float32, torch.float32, False),
        (1, torch.float32, torch.bfloat16, False),
    ],
)
def test_a_row_or_two_of_half_precision_on_a_gpu(
    rows: int, dtype: torch.dtype, weight: torch.dtype, expected: bool
) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x, matrix = torch.empty(rows, 1, 64, dtype=dtype), torch.empty(8, 64, dtype=weight)
        assert not can_stream(x, matrix)
        assert can_stream(torch.empty(x.shape, dtype=dtype, device="cuda"), matrix) is expected
