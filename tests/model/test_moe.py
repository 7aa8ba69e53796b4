"""Mixtures of experts against loops over tokens: choices, gates, outputs and gradients in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.oracles.tiny import tiny_config, tiny_model
from unimodal.model.feedforward.config import MoEConfig
from unimodal.model.feedforward.experts import Experts, Products, by_all, by_batches, by_groups, by_segments
from unimodal.model.feedforward.moe import MixtureOfExperts
from unimodal.model.model import UnifiedModel
from unimodal.model.permuted import Permuted, RowsPicked, RowsSpread

TINY = MoEConfig(experts=5, top_k=2, shared=1, hidden_dim=12, first_dense=0)


def mixture(seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any) -> MixtureOfExperts:
    """A layer with large random weights and a bias."""
    config = tiny_config(moe=replace(TINY, **changes)).trunk
    made = MixtureOfExperts(config).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.5)
        made.router.bias.copy_(torch.randn(made.router.bias.shape, generator=generator) * 0.1)
    return made


def tokens(count: int = 30, seed: int = 1) -> Tensor:
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow(layer: MixtureOfExperts, x: Tensor, kinds: Tensor | None = None) -> Tensor:
    """Token by token and expert by expert, from the formulae."""
    moe, rows = layer.router.config, []
    for index, token in enumerate(x):
        logits = layer.router.gate.weight @ token
        scores = torch.sigmoid(logits) if moe.scores == "sigmoid" else torch.softmax(logits, 0)
        bias = layer.router.bias[int(kinds[index]) if kinds is not None and len(layer.router.bias) > 1 else 0]
        order = sorted(range(moe.experts), key=lambda e: -float(scores[e].detach() + bias[e]))[: moe.top_k]
        total = sum(scores[e] for e in order) if moe.normalized else 1.0
        row = torch.zeros_like(token)
        for e in order:
            gate, up, down = (getattr(layer.experts, f"{name}_proj")[e] for name in ("gate", "up", "down"))
            row = row + moe.scale * scores[e] / total * (down @ (F.silu(gate @ token) * (up @ token)))
        if layer.shared is not None:
            row = row + layer.shared(token)
        rows.append(row)
    return torch.stack(rows)


@pytest.mark.parametrize("scores", ["sigmoid", "softmax"])
@pytest.mark.parametrize("top_k", [1, 2, 5])
@pytest.mark.parametrize("settings", [{}, {"normalized": False, "scale": 2.5}, {"shared": 0}, {"shared": 2}], ids=str)
def test_outputs_and_gradients_are_those_of_a_loop(scores: Any, top_k: int, settings: dict[str, Any]) -> None:
    layer = mixture(scores=scores, top_k=top_k, **settings)
    x, weight = tokens().requires_grad_(), tokens(seed=2)
    found, wanted = layer(x), slow(layer, x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    names = [name for name, _ in layer.named_parameters()]
    for name, one, other in zip(
        ["x", *names],
        torch.autograd.grad(
            (found * weight).sum(), [x, *layer.parameters()], allow_unused=True, materialize_grads=True
        ),
        torch.autograd.grad(
            (wanted * weight).sum(), [x, *layer.parameters()], allow_unused=True, materialize_grads=True
        ),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("products", [by_all, by_groups])
@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_all_forms_of_the_products_agree(products: Products, top_k: int) -> None:
    layer = mixture(top_k=top_k, hidden_dim=16)
    x = tokens()
    routing = layer.router(x, None)
    bits = products is by_groups
    dtype, tolerance = (torch.bfloat16, 3e-2) if bits else (torch.float64, 1e-12)
    experts, given = layer.experts.to(dtype), x.to(dtype)
    gates = routing.gates.to(dtype)
    one, other = (form(experts, given, routing.selected, gates) for form in (products, by_segments))
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("products", [by_all, by_batches, by_segments])
@pytest.mark.parametrize("loads", [[60, 60, 60], [0, 170, 10], [1, 0, 0], [70, 1, 130]], ids=str)
def test_gradients_of_all_forms_agree_whatever_the_load(products: Products, loads: list[int]) -> None:
    """In batches the first load is filled up, the second is lopsided and goes in segments."""
    experts = mixture(top_k=1, experts=3).experts
    generator = torch.Generator().manual_seed(0)
    selected = torch.repeat_interleave(torch.arange(3), torch.tensor(loads))
    selected = selected[torch.randperm(len(selected), generator=generator)][:, None]
    x, gates = tokens(len(selected)).requires_grad_(), tokens(len(selected), seed=3)[:, :1].requires_grad_()
    given = [x, gates, *experts.parameters()]
    made = products(experts, x, selected, gates)
    slow_form = torch.stack([_one(experts, x[n], int(e)) * gates[n] for n, (e,) in enumerate(selected.tolist())])
    torch.testing.assert_close(made, slow_form, rtol=0, atol=1e-12)
    weight = tokens(len(selected), seed=4)
    grads = (torch.autograd.grad((out * weight).sum(), given, materialize_grads=True) for out in (made, slow_form))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


def _one(experts: Experts, token: Tensor, expert: int) -> Tensor:
    gate, up, down = (getattr(experts, f"{name}_proj")[expert] for name in ("gate", "up", "down"))
    return down @ (F.silu(gate @ token) * (up @ token))


def test_rows_that_are_moved_have_the_gradients_of_plain_indexing() -> None:
    x, order, slots = tokens(6).requires_grad_(), torch.tensor([3, 0, 5, 1, 4, 2]), torch.tensor([7, 1, 0, 4, 9, 3])
    y, rows, pairs = tokens(10).requires_grad_(), torch.zeros(10, dtype=torch.int64), slots.view(3, 2)
    rows[slots] = torch.arange(6) // 2

    def permuted(x: Tensor) -> Tensor:
        return Permuted.apply(x, order, order.argsort())  # pyright: ignore[reportReturnType]

    def picked(y: Tensor) -> Tensor:
        return RowsPicked.apply(y, slots)  # pyright: ignore[reportReturnType]

    def spread(x: Tensor) -> Tensor:  # of the fillers nothing is used
        return RowsSpread.apply(x[:3], rows, pairs)[slots]  # pyright: ignore[reportOptionalSubscript]

    for function, given in ((permuted, x), (picked, y), (spread, x)):
        assert torch.autograd.gradcheck(function, given)
    assert torch.equal(permuted(x), x[order]) and torch.equal(picked(y), y[slots])
    assert torch.equal(spread(x), x[[0, 0, 1, 1, 2, 2]])


def test_an_expert_without_tokens_has_a_gradient_of_zero() -> None:
    layer = mixture()
    with torch.no_grad():
        layer.router.bias.copy_(torch.tensor([[9.0, 9.0, -9.0, -9.0, -9.0]]))
    layer(tokens()).sum().backward()
    gradient = layer.experts.gate_proj.grad
    assert gradient is not None and not gradient[2:].any() and gradient[0].any()


def test_the_bias_chooses_and_never_weighs() -> None:
    """With all experts chosen a bias changes nothing; with the choice kept, nothing either."""
    layer, x = mixture(top_k=5), tokens()
    before = layer(x)
    layer.router.bias.add_(torch.tensor([3.0, -1.0, 2.0, 0.0, 7.0]))
    torch.testing.assert_close(layer(x), before, rtol=0, atol=1e-12)
    layer = mixture(top_k=2)
    before, chosen = layer(x), layer.take().selected
    layer.router.bias.add_(0.25)  # the same for all
    after = layer(x)
    assert torch.equal(layer.take().selected, chosen)
    assert torch.equal(after, before)
    layer.router.bias.copy_(torch.tensor([[9.0, -9.0, -9.0, -9.0, 9.0]]))
    layer(x)
    assert layer.take().selected.sort(-1).values.unique(dim=0).tolist() == [[0, 4]]


def test_experts_in_another_order_with_their_rows_of_the_router_give_the_same() -> None:
    layer, x, order = mixture(), tokens(), torch.tensor([3, 0, 4, 1, 2])
    before = layer(x)
    with torch.no_grad():
        for parameter in (layer.router.gate.weight, *layer.experts.parameters()):
            parameter.copy_(parameter[order].clone())
        layer.router.bias.copy_(layer.router.bias[:, order].clone())
    torch.testing.assert_close(layer(x), before, rtol=0, atol=1e-12)


def test_all_experts_without_normalisation_are_a_dense_mixture() -> None:
    layer, x = mixture(top_k=5, normalized=False, shared=0), tokens()
    scores = torch.sigmoid(x @ layer.router.gate.weight.T)
    dense = torch.zeros_like(x)
    for e in range(5):
        gate, up, down = (getattr(layer.experts, f"{name}_proj")[e] for name in ("gate", "up", "down"))
        dense += scores[:, e, None] * ((F.silu(x @ gate.T) * (x @ up.T)) @ down.T)
    torch.testing.assert_close(layer(x), dense, rtol=0, atol=1e-12)


def test_modalities_have_biases_of_their_own() -> None:
    layer, x = mixture(bias_by="modality"), tokens()
    kinds = torch.arange(len(x)) % 2
    torch.testing.assert_close(layer(x, kinds), slow(layer, x, kinds), rtol=0, atol=1e-12)
    assert not torch.allclose(layer(x, kinds), layer(x, 1 - kinds))


def test_the_router_computes_in_float32_whatever_the_type() -> None:
    layer = mixture(dtype=torch.bfloat16)
    assert layer.router.bias.dtype == torch.float32
    bits = layer.router.bias.clone()
    x = tokens().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        routing = layer.router(x, None)
    assert routing.scores.dtype == torch.float32
    exact = torch.sigmoid(x.float() @ layer.router.gate.weight.float().T)
    torch.testing.assert_close(routing.scores, exact, rtol=0, atol=1e-6)
    assert torch.equal(layer.to(torch.float64).router.bias, bits)


def moe_model(**changes: Any) -> UnifiedModel:
    return tiny_model(moe=replace(TINY, first_dense=1, image_ids_from=12, **changes))


@pytest.mark.parametrize("bias_by", ["all", "modality"])
def test_packed_documents_get_what_they_get_alone(bias_by: Any) -> None:
    model = moe_model(bias_by=bias_by)
    one, other = torch.randint(24, (1, 9)), torch.randint(24, (1, 6))
    both = torch.cat([one, other], 1)
    documents = torch.tensor([[0] * 9 + [1] * 6])
    mask = (documents[:, :, None] == documents[:, None, :]) & torch.ones(15, 15).tril().bool()
    positions = torch.cat([torch.arange(9), torch.arange(6)])[None]
    found = model(both, positions, mask[:, None])
    wanted = torch.cat([model(one), model(other)], 1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_first_layers_are_dense_and_what_makes_no_sense_is_refused() -> None:
    model = moe_model()
    kinds = [type(block.feed_forward).__name__ for block in model.trunk.blocks]
    assert kinds == ["FeedForward", "MixtureOfExperts"]
    for wrong in ({"top_k": 6}, {"top_k": 0}, {"scores": "tanh"}, {"hidden_dim": 0}, {"bias_by": "token"}):
        with pytest.raises(ValueError):
            replace(TINY, **wrong)
    with pytest.raises(ValueError, match="not both"):
        tiny_config(moe=TINY, mixture=True)


def test_experts_start_as_dense_parts_do() -> None:
    torch.manual_seed(0)
    experts = Experts(4, 64, 96, 0.01)
    experts.init_weights()
    assert float(experts.gate_proj.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert float(experts.down_proj.detach().std()) == pytest.approx(0.01, rel=0.05)
