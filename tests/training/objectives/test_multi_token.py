"""Multi-token prediction: which token each depth is asked for, what it may know of, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data_pipelines.batch import PackedBatch, collate
from data_pipelines.outline import Outline, Rendered, Run
from tests.oracles.tiny import tiny_model, tiny_space
from unimodal.model.config import MultiTokenConfig
from unimodal.model.heads.multi_token import DEPTHS
from unimodal.model.model import UnifiedModel
from unimodal.training.objectives.base import total
from unimodal.training.objectives.multi_token import MultiToken, shifted
from unimodal.training.objectives.next_token import NextToken
from unimodal.training.packed_pass import packed_features

SPACE = tiny_space()
LENGTH = 48


def document(seed: int, trunk: int = 7, branches: Sequence[int] = (4, 6)) -> Rendered:
    """A trunk without weights but for its last ids, and branches that are learnt."""
    random = Random(seed)

    def some(count: int, weight: float) -> tuple[Run, ...]:
        return (Run(np.array([random.randrange(7, SPACE.vocab_size) for _ in range(count)]), weight),)

    first = (*some(trunk - 3, 0.0), *some(3, 0.5))
    return Outline(first, tuple(some(count, 1.0) for count in branches), branched=len(branches) > 1).build()


def batch_of(*rows: Sequence[Rendered]) -> PackedBatch:
    return collate(rows, LENGTH, SPACE)


def model_of(kind: Any, depth: int = 2, **changes: Any) -> UnifiedModel:
    return tiny_model(SPACE.vocab_size, multi_token=MultiTokenConfig(depth=depth, kind=kind), **changes).double()


def loss_of(model: UnifiedModel, batch: PackedBatch, objective: MultiToken | None = None) -> Tensor:
    objective = objective or MultiToken(weight=1.0)
    features = packed_features(model, batch, {})
    return objective.terms(model, features, batch, objective.prepare(model, batch, {}, 0).state)["multi_token"].weighted


def places_of(sequence: Rendered) -> list[list[int]]:
    """The indices of each stretch of a document: its trunk, and each of its branches."""
    return [[i for i, b in enumerate(sequence.branches) if b == branch] for branch in sorted(set(sequence.branches))]


@pytest.mark.parametrize("depths", [1, 3])
def test_what_stands_further_on_is_that_of_a_loop_over_single_documents(depths: int) -> None:
    rows = [[document(1), document(2, branches=(5,))], [document(3, trunk=4, branches=(3, 3, 9))]]
    batch = batch_of(*rows)
    found = shifted(batch, depths)
    for row, sequences in enumerate(rows):
        start = 0
        for sequence in sequences:
            for stretch in places_of(sequence):
                for number, place in enumerate(stretch):
                    for k in range(depths + 1):
                        there = stretch[number + k + 1] if number + k + 1 < len(stretch) else None
                        wanted = 0 if there is None else int(sequence.ids[there])
                        assert found.ids[k][row, start + place] == wanted
                    for k in range(depths):
                        there = stretch[number + k + 2] if number + k + 2 < len(stretch) else None
                        wanted = 0.0 if there is None else float(sequence.weights[there])
                        assert found.weights[k][row, start + place] == wanted
            start += len(sequence)
        for each in (*found.ids, *found.weights):
            assert not each[row, start:].any()


@pytest.mark.parametrize("kind", DEPTHS)
def test_a_depth_is_asked_for_exactly_its_own_token(kind: str) -> None:
    """By the slow way: one document, one place, one depth at a time."""
    model, objective = model_of(kind), MultiToken(weight=1.0)
    sequence = document(5, branches=(8,))
    batch = batch_of([sequence])
    features = packed_features(model, batch, {})
    ids, weights = torch.as_tensor(sequence.ids), torch.as_tensor(sequence.weights)
    stretches = {place: stretch for stretch in places_of(sequence) for place in stretch}
    later = []
    for k in range(2):
        known = torch.zeros(LENGTH, dtype=torch.int64)
        for place, stretch in stretches.items():
            number = stretch.index(place) + k + 1
            known[place] = ids[stretch[number]] if number < len(stretch) else 0
        later.append(model.trunk.embedding(known)[None])
    head = model.multi_token_head
    assert head is not None
    from unimodal.model.masks import dense_mask

    outs = head(features, later, batch.positions, dense_mask(batch.documents, batch.branches))
    slow = torch.zeros((), dtype=torch.float64)
    for k in range(2):
        for place, stretch in stretches.items():
            number = stretch.index(place)
            learnt = number + 1 < len(stretch) and weights[stretch[number + 1]] > 0
            if learnt and number + k + 2 < len(stretch):
                target = stretch[number + k + 2]
                slow = slow - weights[target] * model.token_head(outs[k][0, place]).log_softmax(-1)[ids[target]] / 2
    torch.testing.assert_close(loss_of(model, batch, objective), slow)


@pytest.mark.parametrize("kind", DEPTHS)
@pytest.mark.parametrize("depth", [1, 2])
def test_a_depth_knows_no_token_beyond_those_it_is_given(kind: str, depth: int) -> None:
    """Changing token j changes no output at place i of depth k where j > i + k."""
    model, length = model_of(kind, depth).eval(), 9
    tokens = torch.arange(7, 7 + length)[None]
    reads = 1 if kind == "sequential" else 0

    def outputs(ids: Tensor) -> Tensor:
        embedded = [model.trunk.embedding(torch.nn.functional.pad(ids[:, k + 1 :], (0, k + 1))) for k in range(depth)]
        head = model.multi_token_head
        assert head is not None
        return head(model(ids), embedded)

    before = outputs(tokens)
    for place in range(1, length):
        changed = tokens.clone()
        changed[0, place] = 20
        differs = (outputs(changed) != before).any(-1)[:, 0]
        for k in range(depth):
            first = max(place - reads * (k + 1), 0)
            assert not differs[k, :first].any() and differs[k, first]


@pytest.mark.parametrize("kind", DEPTHS)
def test_packed_is_alone(kind: str) -> None:
    model, sequences = model_of(kind), [document(1), document(2, branches=(5,))]
    together = loss_of(model, batch_of(sequences))
    alone = sum(loss_of(model, batch_of([sequence])) for sequence in sequences)
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", DEPTHS)
def test_a_weight_of_zero_leaves_the_gradients_of_next_token_prediction_to_the_bit(kind: str) -> None:
    model, batch = model_of(kind), batch_of([document(1)], [document(2)])

    def gradients(weight: float | None) -> dict[str, Tensor]:
        model.zero_grad()
        features = packed_features(model, batch, {})
        terms = NextToken().terms(model, features, batch, None)
        if weight is not None:
            objective = MultiToken(weight=weight)
            terms |= objective.terms(model, features, batch, objective.prepare(model, batch, {}, 0).state)
        total(terms).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None and "multi_token" not in n}

    without, zero, some = gradients(None), gradients(0.0), gradients(0.3)
    assert without.keys() == zero.keys()
    assert all(torch.equal(without[name], zero[name]) for name in without)
    assert not torch.equal(without["heads.tokens.weight"], some["heads.tokens.weight"])


@pytest.mark.parametrize("kind", DEPTHS)
def test_head_and_embedding_get_the_sum_of_what_each_depth_asks_for(kind: str) -> None:
    """Beside a model whose depths have copies of the token head of their own."""
    model, batch = model_of(kind), batch_of([document(1)])
    copies = [model.token_head.weight.detach().clone().requires_grad_() for _ in range(2)]
    loss_of(model, batch).backward()
    shared = model.token_head.weight.grad
    head, ahead = model.multi_token_head, shifted(batch, 2)
    assert head is not None and shared is not None
    from unimodal.model.masks import dense_mask

    features = packed_features(model, batch, {})
    embedded = [model.trunk.embedding(ids) for ids in ahead.ids[:2]]
    outs = head(features, embedded, batch.positions, dense_mask(batch.documents, batch.branches))
    for k, copy in enumerate(copies):
        logs = (outs[k] @ copy.T).log_softmax(-1)
        weights = ahead.weights[k] * (batch.loss_weights > 0)
        losses = -logs.gather(-1, ahead.ids[k + 1][..., None])[..., 0] * weights / 2
        losses.sum().backward(retain_graph=True)
    assert copies[0].grad is not None and copies[1].grad is not None
    torch.testing.assert_close(shared, copies[0].grad + copies[1].grad)


def test_the_weight_changes_once_at_its_batch() -> None:
    objective, model = MultiToken(weight=0.3, later_weight=0.1, later_from=10), model_of("medusa")
    batch = batch_of([document(1)])
    found = [objective.prepare(model, batch, {}, number).state for number in (0, 9, 10, 11)]
    assert found == [0.3, 0.3, 0.1, 0.1]
    assert MultiToken(weight=0.3).prepare(model, batch, {}, 10**6).state == 0.3
    with pytest.raises(ValueError, match="at least 0"):
        MultiToken(weight=-1)


def test_media_are_never_crossed() -> None:
    batch = batch_of([document(4, trunk=9, branches=(6,))])
    spans = torch.zeros_like(batch.tokens)
    spans[0, 3:6] = 1
    found = shifted(replace(batch, spans=spans), 2)
    for k, ids in enumerate(found.ids):
        for place in range(3 - k - 1, 6):
            assert ids[0, max(place, 0)] == 0, "what leads into, through or out of an image"
    assert found.ids[0][0, 6] == batch.tokens[0, 7]


def test_a_config_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        MultiTokenConfig(depth=0)
    with pytest.raises(ValueError, match="'sequential', 'parallel' or 'medusa'"):
        MultiTokenConfig(kind="tree")  # pyright: ignore[reportArgumentType]
