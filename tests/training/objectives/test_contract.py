"""What every objective keeps: named sums over the tokens of a batch that split as the batch does."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from data_pipelines.batch import PackedBatch
from data_pipelines.datamodule import TokenDataModule
from data_pipelines.planning import StreamConfig
from data_pipelines.templates import TemplateConfig
from tests.model.test_moe import TINY
from tests.oracles.tiny import tiny_flow_pipeline, tiny_shards
from unimodal.generation.batch_media import media_tokens
from unimodal.model.branches.base import MediaBatch
from unimodal.model.config import MultiTokenConfig
from unimodal.model.masks import dense_mask
from unimodal.model.model import UnifiedModel
from unimodal.training.objectives import balance, flow_matching, multi_token, next_token
from unimodal.training.objectives.base import EXPERTS, Objective, Terms, total

KINDS: dict[str, type[Objective]] = {
    kind.__name__: kind for kind in Objective.__subclasses__() if kind.__module__.startswith("unimodal.")
}
assert KINDS.keys() >= {
    next_token.NextToken.__name__,
    flow_matching.FlowMatching.__name__,
    multi_token.MultiToken.__name__,
    balance.ExpertBalance.__name__,
}


@pytest.fixture(scope="module")
def models() -> dict[str, UnifiedModel]:
    """With every branch and head, and for the balance of experts with some."""
    flow = tiny_flow_pipeline(multi_token=MultiTokenConfig(depth=2)).model
    dense = tiny_flow_pipeline(mixture=False).model
    moe = replace(TINY, image_ids_from=dense.config.vocab_size - 16)
    config = replace(dense.config, trunk=replace(dense.config.trunk, moe=moe))
    torch.manual_seed(0)
    return {"ExpertBalance": UnifiedModel(config).to(dense.dtype).train()} | {
        name: flow for name in KINDS if name != "ExpertBalance"
    }


@pytest.fixture
def model(models: dict[str, UnifiedModel], request: pytest.FixtureRequest) -> UnifiedModel:
    """The model that an objective of this name trains."""
    return models[request.node.callspec.params["name"]]


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> list[PackedBatch]:
    shards = tiny_shards(tmp_path_factory.mktemp("data") / "shards", latents=True)
    data = TokenDataModule(
        [str(shards)], StreamConfig(length=48, rows=4), TemplateConfig(image_first=0.2, drawn="latents")
    )
    data.setup("fit")
    loader = iter(data.train_dataloader())
    return [next(loader) for _ in range(2)]


def terms_of(objective: Objective, model: UnifiedModel, batch: PackedBatch, number: int = 3) -> Terms:
    media: MediaBatch = {name: media_tokens(packed) for name, packed in batch.media.items()}
    media, state = objective.prepare(model, batch, media, number)
    mask = dense_mask(batch.documents, batch.branches, batch.spans)
    return objective.terms(model, model(batch.tokens, batch.positions, mask, media=media), batch, state)


@pytest.mark.parametrize("name", KINDS)
def test_terms_are_named_scalars_whose_loss_reaches_the_weights(
    name: str, model: UnifiedModel, batches: Sequence[PackedBatch]
) -> None:
    objective = KINDS[name]()
    assert objective.branch in (None, EXPERTS, *model.branches, *model.heads)
    found = [terms_of(objective, model, batch) for batch in batches]
    terms = max(found, key=lambda terms: sum(float(term.weight) for term in terms.values()))
    assert terms and all(term.weighted.shape == term.weight.shape == () for term in terms.values())
    assert all(term.weight >= 0 and not term.weight.requires_grad for term in terms.values())
    assert sum(float(term.weight) for term in terms.values()) > 0
    gradients = torch.autograd.grad(total(terms), list(model.parameters()), allow_unused=True)
    norms = [float(gradient.norm()) for gradient in gradients if gradient is not None]
    assert torch.isfinite(torch.tensor(norms)).all() and sum(norm > 0 for norm in norms) > len(norms) / 4


@pytest.mark.parametrize("name", KINDS)
def test_tokens_without_a_weight_add_nothing(name: str, model: UnifiedModel, batches: Sequence[PackedBatch]) -> None:
    batch = batches[0]
    media = {
        kind: dataclasses.replace(packed, weights=torch.zeros_like(packed.weights))
        for kind, packed in batch.media.items()
    }
    silent = dataclasses.replace(batch, loss_weights=torch.zeros_like(batch.loss_weights), media=media)
    terms = terms_of(KINDS[name](), model, silent)
    assert all(float(term.weighted.detach()) == float(term.weight) == 0 for term in terms.values())


@pytest.mark.parametrize("name", KINDS)
def test_the_same_batch_has_the_same_terms_and_another_number_only_other_noise(
    name: str, model: UnifiedModel, batches: Sequence[PackedBatch]
) -> None:
    objective = KINDS[name]()
    with torch.no_grad():
        first, again, other = (terms_of(objective, model, batches[1], number) for number in (3, 3, 4))
    assert first == again and {key: term.weight for key, term in first.items()} == {
        key: term.weight for key, term in other.items()
    }
    drawn = objective.branch in {*model.branches}
    assert (float(total(first)) != float(total(other))) == drawn
