"""Monitors equal a slow form that runs each document alone, on any number of ranks, and change no training."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data_pipelines.batch import PackedBatch, collate
from data_pipelines.outline import Outline, Run
from tests.oracles.passes import logits
from tests.oracles.tiny import tiny_model, tiny_shards, tiny_space
from tests.oracles.tiny_training import FLOW, ROOT, VISION, Options, fit_arguments, logged, losses
from unimodal.model.attention import QKVProjection
from unimodal.model.branches.base import NO_MEDIA
from unimodal.model.model import UnifiedModel
from unimodal.training.callbacks.monitors import Monitors
from unimodal.training.cli import main, run
from unimodal.training.monitors import observed as observed_module
from unimodal.training.monitors.activations import activation_sums
from unimodal.training.monitors.gradients import modality_gradients
from unimodal.training.monitors.observed import Observed, Observer, first_tokens
from unimodal.training.monitors.predictions import CodeUse, predict, prediction_sums
from unimodal.training.monitors.weights import COMPARED_NUMBERS, Updates, gain_sums, ratios
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
    found = observe(model, batch, len(batch.tokens))
    index = found.batch.loss_weights.flatten().nonzero().flatten()
    targets = found.batch.targets.flatten()[index]
    predicted = predict(model.token_head, found.features.flatten(0, 1)[index], targets, SPACE.image_offset)
    return dict(activation_sums(found).add(prediction_sums(found, predicted, index)).over_ranks())


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
    model = tiny_model(dropout=0.5, moe=None).train()
    state, random = {n: t.clone() for n, t in model.state_dict().items()}, torch.get_rng_state()
    observe(model, batch_of())
    assert model.training and torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not model.trunk._forward_hooks and not model.trunk.norm._forward_pre_hooks


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

    def terms(model: UnifiedModel) -> Any:
        features = model(batch.tokens, batch.positions, mask_of(batch))
        return next_token_terms(features, model.token_head, batch.targets, batch.loss_weights, batch.modality, 1e-5)

    model = tiny_model()
    found = modality_gradients(model, terms(model))
    assert set(found) == {"grad_norm_text", "grad_norm_image"} and all(p.grad is None for p in model.parameters())
    for name, value in found.items():
        other = tiny_model()
        term = terms(other)[name.removeprefix("grad_norm_")]
        (term.weighted / term.weight).backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in other.parameters() if p.grad is not None))
        assert value == pytest.approx(norm, rel=1e-6)


def mask_of(batch: PackedBatch) -> Tensor:
    from unimodal.model.masks import dense_mask

    return dense_mask(batch.documents)


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


def test_a_large_matrix_is_read_at_even_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    from unimodal.training.monitors import weights

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
    features = model(batch.tokens, batch.positions, mask_of(batch))
    return next_token_terms(features, model.token_head, batch.targets, batch.loss_weights, batch.modality, 1e-5)


@pytest.mark.slow
def test_two_ranks_with_uneven_rows_have_the_figures_of_one(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.count("equal") == 2, done.stderr[-3000:]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_shards(tmp_path_factory.mktemp("data") / "shards", latents=True, patch=4)


EXPERTS: Options = {"model__trunk__moe": "{experts: 4, top_k: 2, hidden_dim: 12}"}
KINDS: dict[str, Options] = {
    "discrete": {"model__trunk__dropout": 0.1},
    "flow": FLOW,
    "ViT": VISION,
    "experts": EXPERTS,
    "multi-token": {"model__multi_token": "{depth: 1}"},
}


@pytest.mark.slow
@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_every_kind_of_model_is_monitored_and_trains_as_without(options: Options, shards: Path, tmp_path: Path) -> None:
    found = []
    for every in (0, 2):
        root = tmp_path / str(every)
        root.mkdir()
        extra = [
            "--trainer.callbacks+=tests.oracles.tiny_training.LossFile",
            f"--trainer.callbacks.path={root / 'losses'}",
        ]
        settings: Options = {
            "monitors__every": every,
            "monitors__gradients_every": 4,
            "monitors__rows": 4,
            "data__templates__image_first": 0.2,
        }
        run([*fit_arguments(shards, root, **{**options, **settings, "trainer__max_steps": 6}), *extra])
        found.append(losses(root / "losses"))
    assert found[0] == found[1] and len(found[0]) == 6
    names = ["output_norm", "attention_logit", "attention_logit_layer_01", "qk_gain", "log_z", "update_matrices"]
    names += ["accuracy_text", "entropy_text"]
    names += [] if options is FLOW else ["accuracy_image", "code_entropy", "dead_codes"]
    for name in names:
        values = logged(tmp_path / "2", f"monitor/{name}")
        assert len(values) == 3 and all(math.isfinite(float(value)) for value in values.values()), name
    assert len(logged(tmp_path / "2", f"monitor/grad_norm_{'flow' if options is FLOW else 'image'}")) == 1
    assert "monitor/" not in (tmp_path / "0" / "logs" / "version_0" / "metrics.csv").read_text()


def test_settings_that_monitor_nothing_are_one_line(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option, words in (
        ("--monitors.rows=0", "1 row at least"),
        ("--monitors.every=-1", "every 0 steps at least"),
        ("--monitors.limits.update=-1", "monitors.limits.update is finite and not negative"),
    ):
        with pytest.raises(SystemExit) as end:
            main([*fit_arguments(shards, tmp_path), option])
        said = capsys.readouterr().err.strip().splitlines()
        assert end.value.code == 2 and words in said[-1]
    assert Monitors(every=0).every == 0
