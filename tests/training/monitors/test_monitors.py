"""Monitors equal a slow form that runs each document alone, on any number of ranks, and change no training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data_pipelines.batch import PackedBatch, collate
from data_pipelines.outline import Outline, Run
from tests.oracles.passes import logits
from tests.oracles.ranks import on_ranks
from tests.oracles.tiny import tiny_model, tiny_space
from unimodal.model.attention import QKVProjection
from unimodal.model.branches.base import NO_MEDIA
from unimodal.model.feedforward.config import MoEConfig
from unimodal.model.masks import dense_mask
from unimodal.model.model import UnifiedModel
from unimodal.training.monitors import observed as observed_module
from unimodal.training.monitors import weights
from unimodal.training.monitors.gradients import modality_gradients
from unimodal.training.monitors.measuring import measure_sample
from unimodal.training.monitors.observed import Observed, Observer, first_tokens
from unimodal.training.monitors.predictions import CodeUse, predict
from unimodal.training.monitors.weights import COMPARED_NUMBERS, Updates, gain_sums, ratios
from unimodal.training.objectives.balance import expert_parts
from unimodal.training.objectives.next_token import next_token_terms

SPACE = tiny_space()
ROWS = ((7, 11, 5), (20,), (9, 3))
"""Lengths of documents, by row."""
SHAPES: dict[str, dict[str, Any]] = {
    "grouped": {},
    "swin, no QK-norm": {"norm_placement": "swin", "qk_norm": None},
    "one head": {"num_heads": 1, "num_layers": 1},
}


def ids_of(length: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(7, SPACE.vocab_size, (length,), generator=generator)


def batch_of(rows: Sequence[Sequence[int]] = ROWS, length: int = 28) -> PackedBatch:
    made = [
        [Outline((Run(ids_of(n, 100 * r + n).numpy(), 1.0),), ()).build() for n in row] for r, row in enumerate(rows)
    ]
    return collate(made, length, SPACE)


def documents_of(rows: Sequence[Sequence[int]] = ROWS) -> list[Tensor]:
    return [ids_of(n, 100 * r + n)[None] for r, row in enumerate(rows) for n in row]


def observe(model: UnifiedModel, batch: PackedBatch, rows: int = 3) -> Observed:
    observer = Observer(model=model, rows=rows)
    return observer.observe(observer.sample(batch), NO_MEDIA)


def read(model: UnifiedModel, batch: PackedBatch) -> dict[str, float]:
    """All figures of a pass over all rows."""
    observer = Observer(model=model, rows=len(batch.tokens))
    return dict(measure_sample(observer, observer.sample(batch), NO_MEDIA, SPACE.image_offset).sums.over_ranks())


def alone(model: UnifiedModel, ids: Tensor) -> tuple[list[float], Tensor]:
    """The largest score of each layer, and the last layer's output (T, D), of a document by itself."""
    heads: list[tuple[Tensor, Tensor, Tensor]] = []
    outputs: list[Tensor] = []
    projections = [module for module in model.trunk.modules() if isinstance(module, QKVProjection)]
    hooks = [each.register_forward_hook(lambda m, i, out: heads.append(out)) for each in projections]  # pyright: ignore
    hooks.append(model.trunk.blocks[-1].register_forward_hook(lambda m, i, out: outputs.append(out[0])))
    model(ids)
    for hook in hooks:
        hook.remove()
    largest = []
    for queries, keys, _ in heads:
        scores = []
        for head in range(queries.shape[2]):
            key = keys[0, :, head * keys.shape[2] // queries.shape[2]]
            for query in range(queries.shape[1]):
                products = key[: query + 1] @ queries[0, query, head] / math.sqrt(queries.shape[-1])
                scores.append(float(products.max()))
        largest.append(max(scores))
    return largest, outputs[0]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_figures_of_packed_rows_are_those_of_documents_alone(shape: dict[str, Any]) -> None:
    model, batch = tiny_model(**shape), batch_of()
    found = read(model, batch)
    apart = [alone(model, ids) for ids in documents_of()]
    norms = torch.cat([output.square().mean(-1).sqrt() for _, output in apart])
    assert found["output_norm"] == pytest.approx(float(norms.mean()), rel=1e-6)
    for layer in range(len(model.trunk.blocks)):
        wanted = max(largest[layer] for largest, _ in apart)
        assert found[f"attention_logit_layer_{layer:02d}"] == pytest.approx(wanted, rel=1e-5)
    assert found["attention_logit"] == pytest.approx(max(max(largest) for largest, _ in apart), rel=1e-5)
    distributions = torch.cat([logits(model, ids)[0, :-1] for ids in documents_of()])
    targets = torch.cat([ids[0, 1:] for ids in documents_of()])
    is_image, chances = targets >= SPACE.image_offset, distributions.softmax(-1)
    entropy = -(chances * chances.log()).sum(-1)
    assert found["log_z"] == pytest.approx(float(distributions.exp().sum(-1).log().mean()), rel=1e-5)
    for name, of_kind in (("text", ~is_image), ("image", is_image)):
        right = (distributions.argmax(-1) == targets)[of_kind]
        assert found[f"accuracy_{name}"] == pytest.approx(float(right.float().mean()))
        assert found[f"entropy_{name}"] == pytest.approx(float(entropy[of_kind].mean()), rel=1e-5)


def test_a_pass_leaves_the_model_as_it_was() -> None:
    model = tiny_model(dropout=0.5, moe=MoEConfig(experts=4, top_k=2, hidden_dim=12)).train()
    state, random = {n: t.clone() for n, t in model.state_dict().items()}, torch.get_rng_state()
    observe(model, batch_of())
    assert model.training and torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not model.trunk._forward_hooks and not model.trunk.norm._forward_pre_hooks
    assert all(part.routing is None for part in expert_parts(model))


def test_hidden_pairs_and_padding_do_not_count() -> None:
    """A score of 10,000 between two documents, and one of padding, are nobody's."""
    model, batch = tiny_model(num_layers=1, qk_norm=None), batch_of(((6, 6),), 16)
    found = float(observe(model, batch, 1).attention.amax())
    only = [max(alone(model, ids)[0]) for ids in documents_of(((6, 6),))]
    assert found == pytest.approx(max(only), rel=1e-5)
    queries = keys = torch.zeros(1, 1, 4, 2)
    keys = keys.clone()
    keys[0, 0, 3] = 1e4
    queries = queries + 1
    bias = torch.zeros(1, 1, 4, 4).masked_fill(~torch.ones(4, 4).tril().bool(), -torch.inf)
    real = torch.tensor([[True, True, True, False]])
    assert float(observed_module.largest_score(queries, keys, bias, real)) == 0


def test_long_rows_are_read_in_parts_and_cut_at_a_document(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny_model(), batch_of()
    whole = read(model, batch)
    monkeypatch.setattr(observed_module, "QUERIES_AT_ONCE", 3)
    assert read(model, batch) == pytest.approx(whole)
    row = batch.rows(0, 1)
    for count, kept in ((28, 28), (22, 18), (18, 18), (17, 7), (7, 7), (4, 4)):
        cut = first_tokens(row, count)
        assert cut.tokens.shape == (1, kept) and torch.equal(cut.tokens, row.tokens[:, :kept])
    monkeypatch.setattr(observed_module, "MAX_TOKENS", 10)
    assert observe(model, batch, 3).batch.tokens.shape == (1, 7)


def test_gradients_of_modalities_are_those_of_each_term_alone() -> None:
    batch = batch_of()
    model = tiny_model()
    found = modality_gradients(model, terms_of(model, batch))
    assert set(found) == {"grad_norm_text", "grad_norm_image"} and all(p.grad is None for p in model.parameters())
    for name, value in found.items():
        other = tiny_model()
        term = terms_of(other, batch)[name.removeprefix("grad_norm_")]
        (term.weighted / term.weight).backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in other.parameters() if p.grad is not None))
        assert value == pytest.approx(norm, rel=1e-6)


def test_updates_and_gains_are_those_of_the_weights() -> None:
    model, updates = tiny_model(dtype=torch.float32), Updates()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    assert max(parameter.numel() for parameter in model.parameters()) < COMPARED_NUMBERS
    updates.before(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    found = ratios(dict(updates.after(model).over_ranks()))
    tables = ("trunk.embedding.weight", "heads.tokens.weight")
    moved = sum(float((model.get_parameter(name) - before[name]).square().sum()) for name in tables)
    assert found["update_tables"] == pytest.approx(
        math.sqrt(moved / sum(float(before[n].square().sum()) for n in tables)), rel=1e-4
    )
    assert set(found) == {"update_matrices", "update_tables", "update_vectors"}
    gains = [
        parameter.abs().max()
        for name, parameter in model.named_parameters()
        if "_norm.weight" in name and "qkv" in name
    ]
    assert len(gains) == 4 and gain_sums(model).over_ranks() == {"qk_gain": pytest.approx(float(max(gains)))}
    assert gain_sums(tiny_model(qk_norm=None)).over_ranks() == {}
    assert updates.after(model).over_ranks() == {}


def test_a_rank_without_a_row_of_any_norm_reduces_what_the_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "local_parts", lambda tensors: [tensor[:0] for tensor in tensors])
    assert gain_sums(tiny_model()).over_ranks() == {"qk_gain": 0}


def test_a_large_matrix_is_read_at_even_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "COMPARED_NUMBERS", 50)
    model, updates = tiny_model(dtype=torch.float32), Updates()
    updates.before(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1.25
    assert ratios(dict(updates.after(model).over_ranks())) == pytest.approx(
        {"update_matrices": 0.25, "update_tables": 0.25, "update_vectors": 0.25}, rel=1e-5
    )


def test_codes_that_are_never_expected_are_dead() -> None:
    head = torch.nn.functional.one_hot(torch.arange(24), 24).float() * 20
    model = tiny_model(24, dim=24, num_heads=3, dtype=torch.float32)
    with torch.no_grad():
        model.token_head.weight.copy_(head)
    targets = torch.arange(16, 24)
    codes = CodeUse()
    codes.add(predict(model.token_head, torch.eye(24)[targets], targets, 16), targets, 16)
    assert codes.figures()["dead_codes"] == 0
    assert codes.figures()["code_entropy"] == pytest.approx(math.log(8), abs=1e-3)
    text = torch.full((40,), 9)  # where text is asked for, a code that is expected counts for nothing
    both = torch.cat([targets, text])
    mixed = predict(model.token_head, torch.eye(24)[torch.cat([targets, torch.full((40,), 16)])], both, 16)
    assert torch.allclose(mixed.codes, predict(model.token_head, torch.eye(24)[targets], targets, 16).codes)
    collapsed = CodeUse()
    collapsed.add(predict(model.token_head, torch.eye(24)[[16] * 8], targets, 16), targets, 16)
    found = collapsed.figures()
    assert found["dead_codes"] == 7 / 8 and found["code_entropy"] < 0.01
    assert found["code_entropy_data"] == pytest.approx(math.log(8), abs=1e-4)


RANKS = """
import torch, torch.distributed as dist
from tests.training.monitors.test_monitors import batch_of, read, terms_of
from tests.oracles.tiny import tiny_model
from unimodal.training.monitors.gradients import modality_gradients
model, batch = tiny_model(), batch_of()
whole = {**read(model, batch), **modality_gradients(model, terms_of(model, batch))}
dist.init_process_group("gloo")
part = batch.rows(0, 1) if dist.get_rank() == 0 else batch.rows(1, 3)
found = {**read(model, part), **modality_gradients(model, terms_of(model, part))}
assert found.keys() == whole.keys()
for name, value in found.items():
    assert abs(value - whole[name]) <= 1e-6 * abs(whole[name]), (name, value, whole[name])
print("equal", flush=True)
dist.barrier()
dist.destroy_process_group()
"""


def terms_of(model: UnifiedModel, batch: PackedBatch) -> Any:
    features = model(batch.tokens, batch.positions, dense_mask(batch.documents))
    return next_token_terms(features, model.token_head, batch.targets, batch.loss_weights, batch.modality, 1e-5)


@pytest.mark.slow
def test_two_ranks_with_uneven_rows_have_the_figures_of_one(tmp_path: Path) -> None:
    done = on_ranks(RANKS, tmp_path, 2)
    assert done.returncode == 0 and done.stdout.count("equal") == 2, done.stderr[-3000:]
