"""The decoder: causal, trainable in every part, and blind to what else lies in its row."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data_pipelines.batch import PackedBatch, collate
from data_pipelines.outline import Outline, Rendered, Run
from tests.oracles.passes import logits
from tests.oracles.tiny import tiny_config, tiny_model, tiny_space
from unimodal.model.config import ModelConfig, QKNormConfig
from unimodal.model.flops import active_parameters, flops_per_token
from unimodal.model.masks import dense_mask
from unimodal.model.model import UnifiedModel
from unimodal.training.objectives.base import Terms
from unimodal.training.objectives.next_token import next_token_terms

SPACE = tiny_space()
ROW = 40
KINDS: dict[str, dict[str, Any]] = {
    "pre": {},
    "swin": {"norm_placement": "swin"},
    "without QK-norm": {"qk_norm": None},
    "grouped": {"num_heads": 4, "num_kv_heads": 2},
}


@pytest.fixture(params=KINDS.values(), ids=list(KINDS))
def model(request: pytest.FixtureRequest) -> UnifiedModel:
    return tiny_model(SPACE.vocab_size, **request.param)


def random_sequence(random: Random) -> Rendered:
    """A trunk and up to three branches of random ids, as templates make them."""

    def some(weight: float) -> Run:
        return Run(np.array([random.randrange(SPACE.vocab_size) for _ in range(random.randint(1, 4))]), weight)

    branches = tuple((some(0), some(1.0)) for _ in range(random.randint(0, 3)))
    return Outline((some(0.5),), branches, branched=True).build()


def packed_rows(seed: int, rows: int = 3) -> list[list[Rendered]]:
    random = Random(seed)
    return [[random_sequence(random) for _ in range(random.randint(1, 2))] for _ in range(rows)]


def alone(sequence: Rendered) -> list[Tensor]:
    """The indices of trunk + branch, for every branch; of the trunk where there is none."""
    branches = torch.from_numpy(sequence.branches)
    numbers = range(1, int(branches.max()) + 1) if branches.max() else [0]
    return [((branches == 0) | (branches == number)).nonzero().flatten() for number in numbers]


def loss(model: UnifiedModel, batch: PackedBatch) -> Terms:
    mask = dense_mask(batch.documents, batch.branches)
    features = model(batch.tokens, batch.positions, mask)
    fields = (batch.targets, batch.loss_weights.double(), batch.modality)
    return next_token_terms(features, model.token_head, *fields, z_weight=1e-2)


def test_changing_a_token_changes_no_output_before_it(model: UnifiedModel) -> None:
    tokens = torch.randint(SPACE.vocab_size, (2, 12))
    before = logits(model, tokens)
    for place in range(12):
        changed = tokens.clone()
        changed[:, place] = (changed[:, place] + 1) % SPACE.vocab_size
        after = logits(model, changed)
        torch.testing.assert_close(after[:, :place], before[:, :place], rtol=0, atol=1e-13)
        assert all((after[:, later] - before[:, later]).abs().max() > 1e-9 for later in range(place, 12))


def test_every_parameter_gets_a_gradient(model: UnifiedModel) -> None:
    model.train()
    found = logits(model, torch.randint(SPACE.vocab_size, (4, 10)))
    (found * torch.randn_like(found)).sum().backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert dead == []


@pytest.mark.parametrize("seed", range(4))
def test_packed_documents_and_branches_have_the_logits_of_sequences_alone(model: UnifiedModel, seed: int) -> None:
    rows = packed_rows(seed)
    batch = collate(rows, ROW, SPACE)
    packed = logits(model, batch.tokens, batch.positions, dense_mask(batch.documents, batch.branches))
    for row, sequences in enumerate(rows):
        start = 0
        for sequence in sequences:
            for index in alone(sequence):
                expected = logits(model, torch.from_numpy(sequence.ids)[index][None])[0]
                torch.testing.assert_close(packed[row, start + index], expected, rtol=1e-12, atol=1e-12)
            start += len(sequence)


def test_packed_documents_give_the_same_loss_as_documents_alone(model: UnifiedModel) -> None:
    rows = packed_rows(seed=5)
    packed = loss(model, collate(rows, ROW, SPACE))
    singles = [loss(model, collate([[sequence]], ROW, SPACE)) for row in rows for sequence in row]
    assert packed.keys() == {"text", "image", "z_loss"}
    for name, found in packed.items():
        for together, alone in zip(found, zip(*(single[name] for single in singles), strict=True), strict=True):
            total = torch.stack(alone).sum()
            assert total > 0
            torch.testing.assert_close(together, total, rtol=1e-12, atol=1e-12)


def test_training_and_evaluation_without_dropout_are_the_same_function(model: UnifiedModel) -> None:
    tokens = torch.randint(SPACE.vocab_size, (2, 12))
    with torch.no_grad():
        evaluated = logits(model, tokens)
    torch.testing.assert_close(logits(model.train(), tokens).detach(), evaluated, rtol=1e-12, atol=1e-12)


def test_dropout_acts_in_training_alone() -> None:
    model = tiny_model(dropout=0.5)
    tokens = torch.randint(24, (1, 8))
    assert torch.equal(logits(model, tokens), logits(model, tokens))
    model.train()
    assert not torch.equal(logits(model, tokens), logits(model, tokens))


def test_parameters_and_operations_are_counted_by_the_formula() -> None:
    whole = tiny_config(num_heads=4, num_kv_heads=2)
    config = whole.trunk
    width, head, kv = config.dim, config.head_dim, config.num_kv_heads * config.head_dim
    attention = 2 * width * width + 2 * width * kv + 2 * (4 + 2) * head
    layer = attention + 3 * width * config.hidden_dim + 2 * width
    expected = config.num_layers * layer + width + whole.vocab_size * width
    model = UnifiedModel(whole)
    assert active_parameters(model) == expected
    assert sum(parameter.numel() for parameter in model.parameters()) == expected + whole.vocab_size * width
    assert flops_per_token(model, 100) == 6 * expected + 12 * config.num_layers * width * 100


def test_projections_into_the_residual_stream_start_smaller() -> None:
    model = UnifiedModel(tiny_config(dim=128, num_layers=8, hidden_dim=256))
    block: Any = model.trunk.blocks[0]
    assert block.attention.qkv.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.attention.o_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert block.feed_forward.down_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert torch.equal(block.attention.qkv.q_norm.weight, torch.ones(2, 64))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_heads": 3}, "heads must divide dim"),
        ({"num_heads": 0}, "kv heads must divide heads"),
        ({"num_heads": 4, "num_kv_heads": 3}, "kv heads must divide heads"),
        ({"dim": 6}, "even head width"),
        ({"num_layers": 0}, "at least 1"),
        ({"dropout": 1.0}, "dropout lies in"),
        ({"norm_placement": "post"}, "'pre' or 'swin'"),
    ],
)
def test_a_config_that_exists_is_valid(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        tiny_config(**changes)


@pytest.mark.parametrize("qk_norm", [None, QKNormConfig(eps=1e-4)])
def test_a_config_survives_json_and_unknown_fields_are_refused(qk_norm: QKNormConfig | None) -> None:
    config = tiny_config(qk_norm=qk_norm)
    assert ModelConfig.from_dict(config.to_dict()) == config
    for wrong in (
        {**config.to_dict(), "colour": "red"},
        {**config.to_dict(), "trunk": {"qk_norm": {"epsilon": 1}}},
        {},
        {**config.to_dict(), "trunk": [1]},
        {**config.to_dict(), "trunk": None},
        [1],
        None,
    ):
        with pytest.raises(ValueError, match="not a model config"):
            ModelConfig.from_dict(wrong)  # pyright: ignore[reportArgumentType]
