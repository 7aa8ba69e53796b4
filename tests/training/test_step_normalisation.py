"""A step's gradient is that of the weighted mean over all its tokens, however they were cut into batches or ranks."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from data_pipelines.batch import PackedBatch, collate
from data_pipelines.outline import Outline, Rendered, Run
from data_pipelines.spec import DataSpec
from tests.oracles.tiny import tiny_shards, tiny_space
from tests.oracles.tiny_training import fit_arguments, weights_after
from unimodal.model.config import TransformerConfig
from unimodal.model.masks import dense_mask
from unimodal.model.model import UnifiedModel
from unimodal.training.module import TransformerModule
from unimodal.training.objectives.base import total
from unimodal.training.objectives.next_token import NextToken, next_token_terms
from unimodal.training.optimizers.build import AdamWConfig

SPACE = tiny_space()
ROW = 24
Z_WEIGHT = 1e-2


class FixedBatches(L.LightningDataModule):
    """The same batches in every epoch."""

    def __init__(self, batches: list[PackedBatch]) -> None:
        super().__init__()
        self.batches, self.spec = batches, DataSpec(space=SPACE)

    def train_dataloader(self) -> Any:
        return DataLoader(self.batches, batch_size=None)  # pyright: ignore[reportArgumentType]


def uneven_batches(count: int) -> list[PackedBatch]:
    """Batches of very different weight: the later, the longer its sequences and the more of their tokens count."""
    random = Random(0)

    def sequence(length: int, weight: float) -> Rendered:
        ids = np.array([random.randrange(SPACE.vocab_size) for _ in range(length)])
        return Outline((Run(ids[:2], 0),), ((Run(ids[2:], weight),),)).build()

    return [collate([[sequence(4 + 5 * index, 0.3 + index)] for _ in range(2)], ROW, SPACE) for index in range(count)]


def joined(batches: list[PackedBatch]) -> PackedBatch:
    fields = [name for name in PackedBatch.__dataclass_fields__ if name not in ("spans", "media")]
    columns: dict[str, Any] = {name: torch.cat([getattr(batch, name) for batch in batches]) for name in fields}
    return PackedBatch(**columns)


def after_a_step(batches: list[PackedBatch], root: Path, **settings: Any) -> UnifiedModel:
    """One step of Lightning's trainer at learning rate 0: weights as they began, gradients as the step saw them."""
    torch.manual_seed(0)
    trunk = TransformerConfig(dim=16, num_layers=2, num_heads=2, num_kv_heads=1, hidden_dim=24, max_length=64)
    still, objectives = AdamWConfig(learning_rate=0.0), [NextToken(z_weight=Z_WEIGHT)]
    module = TransformerModule(trunk, objectives=[*objectives], optimizer=still, compile=False)
    trainer = L.Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=root,
        **settings,
    )
    trainer.fit(module, FixedBatches(batches))
    assert module.model is not None and trainer.global_step == 1
    return module.model


def gradients(model: UnifiedModel) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys() and found
    for name, gradient in expected.items():
        largest = float(gradient.abs().max())
        assert largest > 0
        torch.testing.assert_close(
            found[name], gradient, rtol=0, atol=1e-5 * largest, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("count", [2, 3])
def test_accumulated_batches_have_the_gradient_of_one_joined_batch(tmp_path: Path, count: int) -> None:
    batches = uneven_batches(count)
    accumulated = after_a_step(batches, tmp_path, accumulate_grad_batches=count)
    together = after_a_step([joined(batches)], tmp_path)
    assert_same(gradients(accumulated), gradients(together))


def test_a_step_has_the_gradient_of_the_weighted_mean_over_its_tokens(tmp_path: Path) -> None:
    batches = uneven_batches(2)
    model = after_a_step(batches, tmp_path, accumulate_grad_batches=2)
    found = gradients(model)
    model.zero_grad()
    batch = joined(batches)
    features = model(batch.tokens, batch.positions, dense_mask(batch.documents, batch.branches))
    fields = (batch.targets, batch.loss_weights, batch.modality)
    terms = next_token_terms(features, model.token_head, *fields, Z_WEIGHT)
    (total(terms) / batch.loss_weights.sum()).backward()
    assert_same(found, gradients(model))


def test_clipping_acts_on_the_mean_gradient_not_on_the_sum(tmp_path: Path) -> None:
    batches = uneven_batches(2)
    free = gradients(after_a_step(batches, tmp_path, accumulate_grad_batches=2))
    norm = float(torch.nn.utils.get_total_norm(free.values()))
    loose = after_a_step(batches, tmp_path, accumulate_grad_batches=2, gradient_clip_val=1.01 * norm)
    assert_same(gradients(loose), free)
    tight = gradients(after_a_step(batches, tmp_path, accumulate_grad_batches=2, gradient_clip_val=0.5 * norm))
    assert_same(tight, {name: 0.5 * gradient for name, gradient in free.items()})


@pytest.mark.slow
def test_two_processes_train_as_one_that_accumulates_their_batches(tmp_path: Path) -> None:
    shards = tiny_shards(tmp_path / "shards")
    adamw = {"model__optimizer": "AdamWConfig", "model__optimizer__eps": 1e-3, "model__optimizer__learning_rate": 0.01}
    one = fit_arguments(shards, tmp_path / "one", trainer__max_steps=2, trainer__accumulate_grad_batches=2, **adamw)
    two = fit_arguments(
        shards, tmp_path / "two", trainer__max_steps=2, trainer__devices=2, trainer__strategy="ddp", **adamw
    )
    alone, together = weights_after((one, tmp_path / "one"), (two, tmp_path / "two"))
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
