"""Balance of experts: counts are exact, the bias moves as DeepSeek-V3's, the terms are their formulae."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from data_pipelines.batch import PackedBatch
from tests.model.test_moe import TINY
from tests.oracles.tiny import tiny_model
from tests.training.objectives.test_multi_token import SPACE, batch_of, document
from unimodal.model.feedforward.router import Routing
from unimodal.model.model import UnifiedModel
from unimodal.training.objectives.balance import ExpertBalance, choices, expert_parts, loads, move_bias
from unimodal.training.parallel.activations import checkpoint_activations


def test_the_reference_step_of_the_bias() -> None:
    """Counts 4, 2, 1, 1: signs -1, 0, 1, 1 of the mean 2, less their mean."""
    bias = torch.zeros(1, 4)
    move_bias(bias, torch.tensor([[3, 2, 0, 1], [1, 0, 1, 0]]), 1e-3)
    torch.testing.assert_close(bias, torch.tensor([[-1.25, -0.25, 0.75, 0.75]]) * 1e-3)
    move_bias(bias.zero_(), torch.tensor([[2, 2, 2, 2], [1, 1, 1, 1]]), 1e-3)
    assert not bias.any(), "an even load moves nothing"


def test_modalities_are_moved_apart() -> None:
    bias = torch.zeros(2, 2)
    move_bias(bias, torch.tensor([[9, 1], [1, 9]]), 1e-2)
    torch.testing.assert_close(bias, torch.tensor([[-0.01, 0.01], [0.01, -0.01]]))  # balanced in sum, each lopsided


def packed_documents(number: int) -> PackedBatch:
    """Two rows, padded; their documents have ids of text and of images."""
    first = 10 * number
    return batch_of(
        [document(first), document(first + 1, branches=(5,))], [document(first + 2, trunk=4, branches=(3, 3, 9))]
    )


def model_with_experts() -> UnifiedModel:
    return tiny_model(SPACE.vocab_size, moe=replace(TINY, first_dense=1, image_ids_from=SPACE.image_offset))


def step(model: Any, objective: ExpertBalance, numbers: list[int]) -> dict[str, torch.Tensor]:
    """Forward and backward passes over some batches; the terms of the last."""
    terms: dict[str, Any] = {}
    for number in numbers:
        batch = packed_documents(number)
        prepared = objective.prepare(model, batch, {}, number)
        features = model(batch.tokens, batch.positions)
        terms = objective.terms(model, features, batch, prepared.state)
        (sum(term.weighted for term in terms.values()) + features.sum()).backward()
    return {name: term.weighted / term.weight for name, term in terms.items()}


@pytest.mark.parametrize("checkpointing", ["none", "block", "selective"])
def test_counts_are_those_of_a_loop_under_accumulation_and_recomputation(checkpointing: Any) -> None:
    model = model_with_experts().train()
    checkpoint_activations(model, checkpointing)
    objective, wanted = ExpertBalance(), torch.zeros(2, 5, dtype=torch.int64)
    step(model, objective, [0, 1, 2])
    (part,) = expert_parts(model)
    found = part.counts
    plain = model_with_experts()
    for number in range(3):
        batch = packed_documents(number)
        plain(batch.tokens, batch.positions)
        (other,) = expert_parts(plain)
        for token, of, chosen in zip(
            batch.tokens.flatten(), batch.documents.flatten(), other.take().selected, strict=True
        ):
            for expert in chosen if of >= 0 else []:
                wanted[int(token >= SPACE.image_offset), expert] += 1
    assert found is not None and torch.equal(found, wanted) and wanted.sum(1).min() > 0
    metrics = objective.end_step(model, 1, sound=True)
    assert part.counts is None and part.router.bias.any()
    share = wanted.sum(0) / wanted.sum()
    assert float(metrics["max_load"]) == pytest.approx(5 * float(share.max()))


def test_a_skipped_step_moves_no_bias_and_leaves_no_counts() -> None:
    model = model_with_experts().train()
    step(model, ExpertBalance(), [0])
    (part,) = expert_parts(model)
    before = part.router.bias.clone()
    ExpertBalance().end_step(model, 1, sound=False)
    assert torch.equal(part.router.bias, before) and part.counts is None


def test_terms_are_their_formulae() -> None:
    model, objective = model_with_experts().train(), ExpertBalance(weight=1.0, z_weight=1.0)
    found = step(model, objective, [0])
    batch = packed_documents(0)
    model(batch.tokens, batch.positions)
    (part,) = expert_parts(model)
    routing = part.take()
    keys = [(row, int(d)) for row, documents in enumerate(batch.documents) for d in documents]
    total = z_loss = 0.0
    weights = batch.loss_weights.flatten()
    for key in {key for key in keys if key[1] >= 0}:
        index = [place for place, other in enumerate(keys) if other == key]
        f = torch.zeros(5).double()
        for place in index:
            f[routing.selected[place]] += 5 / (2 * len(index))
        scores = routing.scores[index].detach()
        total += float(weights[index].sum()) * float((f * (scores / scores.sum(-1, keepdim=True)).mean(0)).sum())
        z_loss += float((routing.logits[index].detach().exp().sum(-1).log().square() * weights[index]).sum())
    count = float(weights.sum())
    assert float(found["balance"]) == pytest.approx(total / count, rel=1e-5)
    assert float(found["router_z"]) == pytest.approx(z_loss / count, rel=1e-5)


def test_loads_of_an_even_and_of_a_collapsed_router() -> None:
    even = loads(torch.full((1, 2, 4), 5))
    assert float(even["max_load"]) == pytest.approx(1) and float(even["entropy"]) == pytest.approx(1)
    apart = loads(torch.tensor([[[8, 0], [0, 8]]]))
    assert float(apart["max_load"]) == pytest.approx(1), "in sum nothing is seen"
    assert float(apart["max_load_text"]) == pytest.approx(2) and float(apart["entropy_image"]) == pytest.approx(0)


def test_choices_are_told_apart_by_modality_and_padding_is_none() -> None:
    selected = torch.tensor([[0, 1], [0, 2], [3, 4]])
    routing = Routing(selected, *[torch.zeros(3, 2)] * 3)
    found = choices(routing, torch.tensor([0, 1, 1]), torch.tensor([True, True, False]), TINY)
    assert found.tolist() == [[1, 1, 0, 0, 0], [1, 0, 1, 0, 0]]


def test_training_spreads_a_lopsided_load() -> None:
    """All tokens at first choose the same experts; after many steps of the bias they do not."""
    model = model_with_experts().train()
    (part,) = expert_parts(model)
    with torch.no_grad():
        part.router.bias.copy_(torch.tensor([[0.6, 0.6, 0.0, 0.0, 0.0]]))
    objective = replace(ExpertBalance(), bias_rate=0.02)
    first = last = 0.0
    for number in range(80):
        step(model, objective, [number % 4])
        last = float(objective.end_step(model, number, sound=True)["max_load"])
        first = first or last
    assert first > 2 and last < 1.6
