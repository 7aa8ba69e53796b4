"""Packed weights: the same function."""

from __future__ import annotations

import pytest
import torch

from tests.oracles.tiny import tiny_transformer
from unimodal.model.packed import PackedLinear, can_pack, packed
from unimodal.model.transformer import Transformer


def test_a_packed_transformer_gives_the_same_logits_for_any_number_of_rows() -> None:
    transformer = tiny_transformer(dtype=torch.float32)
    fast = packed(transformer)
    assert sum(isinstance(module, PackedLinear) for module in fast.modules()) == 2 * 4 + 1
    for rows, length in ((1, 1), (2, 1), (5, 1), (3, 7), (1, 40)):
        tokens = torch.randint(24, (rows, length))
        with torch.inference_mode():
            torch.testing.assert_close(fast(tokens), transformer(tokens), rtol=1e-5, atol=1e-5)


def test_packing_leaves_the_given_transformer_alone_and_shares_its_embedding() -> None:
    transformer = tiny_transformer(dtype=torch.float32)
    before = {name: value.clone() for name, value in transformer.state_dict().items()}
    fast = packed(transformer)
    assert type(transformer) is Transformer and fast is not transformer
    assert all(torch.equal(value, before[name]) for name, value in transformer.state_dict().items())
    assert fast.embedding.weight is transformer.embedding.weight and not fast.training


def test_what_cannot_be_packed_is_used_as_it_is() -> None:
    transformer = tiny_transformer(dtype=torch.float64)
    assert not can_pack(transformer.embedding.weight) and packed(transformer) is transformer


def test_a_bias_is_refused() -> None:
    with pytest.raises(ValueError, match="with a bias"):
        PackedLinear([torch.nn.Linear(4, 4)])
