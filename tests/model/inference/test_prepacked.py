"""Prepacked weights: the same function."""

from __future__ import annotations

import pytest
import torch

from tests.oracles.passes import logits
from tests.oracles.tiny import tiny_model
from unimodal.model.config import QKNormConfig
from unimodal.model.inference.prepacked import PrepackedLinear, PrepackedRMSNorm, can_prepack, prepacked
from unimodal.model.model import UnifiedModel


@pytest.mark.parametrize("qk_norm", [QKNormConfig(kind="layer"), QKNormConfig(kind="rms"), None], ids=str)
def test_a_prepacked_model_gives_the_same_logits_for_any_number_of_rows(qk_norm: QKNormConfig | None) -> None:
    model = tiny_model(dtype=torch.float32, qk_norm=qk_norm)
    exact = tiny_model(qk_norm=qk_norm)
    exact.load_state_dict(model.state_dict())
    fast = prepacked(model)
    assert sum(isinstance(module, PrepackedLinear) for module in fast.modules()) == 2 * 4 + 1
    rounding, error = 0.0, 0.0
    for rows, length in ((1, 1), (2, 1), (5, 1), (3, 7), (1, 40)):
        tokens = torch.randint(24, (rows, length))
        with torch.inference_mode():
            expected = logits(exact, tokens)
            rounding = max(rounding, float((logits(model, tokens) - expected).abs().max()))
            error = max(error, float((logits(fast, tokens) - expected).abs().max()))
    assert rounding < 1e-4 and error < 3 * rounding, (rounding, error)


def test_the_norm_in_one_kernel_is_rms_norm() -> None:
    norm = torch.nn.RMSNorm(12, eps=1e-5).double()
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(5, 3, 12, dtype=torch.float64) * torch.logspace(-4, 3, 5, dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(PrepackedRMSNorm(norm)(x), norm(x), rtol=1e-12, atol=1e-12)


def test_prepacking_leaves_the_given_model_alone_and_shares_its_embedding() -> None:
    model = tiny_model(dtype=torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fast = prepacked(model)
    assert type(model) is UnifiedModel and fast is not model
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert fast.trunk.embedding.weight is model.trunk.embedding.weight and not fast.training


def test_what_cannot_be_prepacked_is_used_as_it_is() -> None:
    model = tiny_model(dtype=torch.float64)
    assert not can_prepack(model.trunk.embedding.weight) and prepacked(model) is model


def test_biases_are_added_in_the_order_of_their_layers() -> None:
    layers = [torch.nn.Linear(16, 4), torch.nn.Linear(16, 8)]
    x = torch.randn(5, 16)
    torch.testing.assert_close(PrepackedLinear(layers)(x), torch.cat([layer(x) for layer in layers], dim=-1))
