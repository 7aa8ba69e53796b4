"""Attention: the chunked kernel, torch's kernel and a loop over single keys are one function."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.oracles.slow_attention import attend_slowly, attention_layer_slowly, random_layout, visible
from tests.oracles.tiny import tiny_config, tiny_model
from unimodal.model import kernels
from unimodal.model.attention import HeadLayerNorm
from unimodal.model.context import LayerContext
from unimodal.model.kernels import attend, chunked_attention
from unimodal.model.masks import additive, dense_mask

# Shapes: B rows, T tokens, H query heads, K key/value heads, W head width.

LENGTH = 12


def layouts(rows: int) -> tuple[Tensor, list[list[set[int]]]]:
    """A mask (B, 1, T, T) of random documents, branches and padding, and the same as sets."""
    drawn = [random_layout(Random(seed), LENGTH) for seed in range(rows)]
    mask = dense_mask(torch.tensor([d for d, _ in drawn]), torch.tensor([b for _, b in drawn]))
    return mask, [visible(documents, branches) for documents, branches in drawn]


def random_heads(rows: int, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    shapes = [(rows, count, LENGTH, 8) for count in (heads, kv_heads, kv_heads)]
    queries, keys, values = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    return queries, keys, values


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1), (1, 1)])
@pytest.mark.parametrize("scores_at_once", [1, 700, 10**6])
def test_the_chunked_kernel_and_its_gradients_equal_torchs_kernel(
    heads: int, kv_heads: int, scores_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "SCORES_AT_ONCE", scores_at_once)
    mask, _ = layouts(5)
    bias = additive(mask, torch.float64)
    heads_and_values = random_heads(5, heads, kv_heads)
    torchs = F.scaled_dot_product_attention(*heads_and_values, attn_mask=bias, enable_gqa=True)
    chunked = chunked_attention(*heads_and_values, bias)
    torch.testing.assert_close(chunked, torchs, rtol=1e-12, atol=1e-12)
    above = torch.randn_like(torchs)
    expected = torch.autograd.grad(torchs, heads_and_values, above)
    found = torch.autograd.grad(chunked, heads_and_values, above)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def test_the_chunked_kernel_takes_one_mask_for_all_rows() -> None:
    heads_and_values = random_heads(3, 2, 2)
    bias = additive(layouts(1)[0], torch.float64)
    together = chunked_attention(*heads_and_values, bias)
    torch.testing.assert_close(together, chunked_attention(*heads_and_values, bias.expand(3, -1, -1, -1)))


def test_the_kernels_backward_pass_agrees_with_finite_differences() -> None:
    bias = additive(layouts(2)[0], torch.float64)
    assert torch.autograd.gradcheck(lambda q, k, v: chunked_attention(q, k, v, bias), random_heads(2, 2, 1))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (2, 1)])
def test_attention_equals_a_loop_over_single_keys(heads: int, kv_heads: int, training: bool) -> None:
    mask, seen = layouts(3)
    queries, keys, values = random_heads(3, heads, kv_heads)
    with torch.set_grad_enabled(training):
        found = attend(queries, keys, values, additive(mask, torch.float64))
    slow = attend_slowly(queries.detach(), keys.detach(), values.detach(), seen)
    torch.testing.assert_close(found.detach(), slow, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("changes", [{}, {"num_heads": 4, "num_kv_heads": 2}, {"qk_norm": None}])
def test_the_layer_normalises_each_head_with_its_own_weight_and_bias_and_then_rotates(changes: dict) -> None:
    model = tiny_model(**changes).requires_grad_(False)
    block: Any = model.trunk.blocks[0]
    layer = block.attention
    mask, seen = layouts(2)
    positions = torch.tensor([[(7 * token) % 5 + token for token in range(LENGTH)]] * 2)
    x = torch.randn(2, LENGTH, model.config.trunk.dim, dtype=torch.float64)
    rotation = model.trunk.rotary(positions, torch.float64)
    found = layer(x, LayerContext(rotation, additive(mask, torch.float64), None, positions))
    slow = attention_layer_slowly(layer, x, positions.tolist(), seen, model.config.trunk.rope.theta)
    torch.testing.assert_close(found, slow, rtol=1e-11, atol=1e-12)


def test_qk_norm_is_torchs_layer_norm_in_every_head() -> None:
    norm = HeadLayerNorm(3, 8, eps=1e-5).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 5, 3, 8, dtype=torch.float64)
    for head in range(3):
        expected = F.layer_norm(x[:, :, head], (8,), norm.weight[head], norm.bias[head], eps=1e-5)
        torch.testing.assert_close(norm(x)[:, :, head], expected, rtol=1e-12, atol=1e-12)


def test_qk_norm_has_parameters_for_each_query_and_key_head() -> None:
    config = tiny_config(num_heads=4, num_kv_heads=2).trunk
    block: Any = tiny_model(num_heads=4, num_kv_heads=2).trunk.blocks[0]
    qkv = block.attention.qkv
    assert qkv.q_norm.weight.shape == qkv.q_norm.bias.shape == (4, config.head_dim)
    assert qkv.k_norm.weight.shape == qkv.k_norm.bias.shape == (2, config.head_dim)
