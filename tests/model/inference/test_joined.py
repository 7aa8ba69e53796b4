"""Joined matrices: the same function, on the same memory."""

from __future__ import annotations

import pytest
import torch

from tests.oracles.passes import logits
from tests.oracles.tiny import tiny_model
from unimodal.model.config import QKNormConfig
from unimodal.model.inference.joined import JoinedLinear, joined


@pytest.mark.parametrize("qk_norm", [QKNormConfig(kind="layer"), QKNormConfig(kind="rms"), None], ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_a_joined_model_gives_the_same_logits(qk_norm: QKNormConfig | None, biased: bool) -> None:
    model = tiny_model(qk_norm=qk_norm, qkv_bias=biased).requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith("proj.bias"):
            torch.nn.init.normal_(parameter)
    tokens = torch.randint(24, (3, 7))
    expected = logits(model, tokens)
    fast = joined(model)
    assert sum(isinstance(module, JoinedLinear) for module in fast.modules()) == 2 * 4 + 1
    torch.testing.assert_close(logits(fast, tokens), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(logits(model, tokens), expected, rtol=0, atol=0)


def test_nothing_is_held_twice_and_later_changes_reach_the_joined_matrices() -> None:
    model = tiny_model().requires_grad_(False)
    fast = joined(model)
    held = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in fast.parameters()}
    for parameter in model.parameters():
        storage = parameter.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
    norms = sum(8 * each.numel() for name, each in fast.named_parameters() if "qk_norm" in name)
    assert sum(held.values()) - norms == sum(8 * each.numel() for each in model.parameters())
    model.get_parameter("trunk.blocks.0.attention.qkv.v_proj.weight").mul_(3.0)
    model.get_parameter("trunk.blocks.1.feed_forward.up_proj.weight").mul_(-1.0)
    tokens = torch.randint(24, (2, 5))
    torch.testing.assert_close(logits(fast, tokens), logits(model, tokens), rtol=1e-12, atol=1e-12)


def test_a_model_that_trains_keeps_its_matrices() -> None:
    model = tiny_model()
    assert joined(model) is model
