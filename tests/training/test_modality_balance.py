"""Which share of the loss each modality has: logged, said once, and warned of where one has next to nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from data_pipelines.batch import PackedBatch
from tests.oracles.tiny import tiny_shards, tiny_space
from tests.oracles.tiny_training import FLOW, Options, fit_arguments, logged
from tokenizers_vq.token_space import Modality
from unimodal.training.cli import run
from unimodal.training.monitors.documents import document_sums
from unimodal.training.start import StartConfig


class WeightFile(L.Callback):
    """Appends the weights of text and of images of every batch to `path`."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = Path(path)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: PackedBatch, batch_idx: int
    ) -> None:
        del trainer, pl_module, batch_idx
        kinds = (Modality.TEXT, Modality.IMAGE)
        sums = [float(batch.loss_weights[batch.modality == int(kind)].sum()) for kind in kinds]
        with self.path.open("a") as file:
            file.write(f"{sums[0]} {sums[1]}\n")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_shards(tmp_path_factory.mktemp("data") / "shards", latents=True)


def trained(shards: Path, root: Path, capsys: Any, **options: str | float) -> str:
    callback = ["--trainer.callbacks+=tests.training.test_modality_balance.WeightFile"]
    callback += [f"--trainer.callbacks.path={root / 'weights'}"]
    run([*fit_arguments(shards, root, trainer__max_steps=4, **options), *callback])
    return capsys.readouterr().out


@pytest.mark.slow
def test_shares_are_those_of_the_weights_over_accumulated_batches(shards: Path, tmp_path: Path, capsys: Any) -> None:
    options: Options = {"trainer__accumulate_grad_batches": 2, "data__templates__image_first": 0.5}
    said = trained(shards, tmp_path, capsys, **options, monitors__every=2)
    weights = [tuple(map(float, line.split())) for line in (tmp_path / "weights").read_text().splitlines()]
    images = []
    for step in range(4):
        text, image = (sum(each[kind] for each in weights[2 * step : 2 * step + 2]) for kind in (0, 1))
        images.append(image / (text + image))
        assert float(logged(tmp_path, "train/share_image")[step]) == pytest.approx(images[-1], abs=1e-5)
        assert float(logged(tmp_path, "train/share_text")[step]) == pytest.approx(1 - images[-1], abs=1e-5)
    share = sum(images) / 4
    assert said.count(f"modalities share the loss: text {1 - share:.0%}, image codes {share:.0%}") == 1
    assert "warning: image codes have" not in said
    assert logged(tmp_path, "monitor/separators") == {1: "1.0", 3: "1.0"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data__templates__drawn_image_weight": 0.001}, "warning: image codes have"),
        (FLOW, "latents"),
    ],
)
def test_a_modality_with_next_to_nothing_is_warned_of_and_latents_count(
    options: Options, words: str, shards: Path, tmp_path: Path, capsys: Any
) -> None:
    assert words in trained(shards, tmp_path, capsys, **{"data__templates__image_first": 0.2, **options})


def test_separators_are_counted_by_answers_that_end() -> None:
    space = tiny_space()
    specials = space.specials
    tokens = torch.tensor([[specials.bos, 9, specials.sep, 8, specials.eos, 9, specials.sep, 8, specials.eos]])
    zeros = torch.zeros_like(tokens)
    batch = PackedBatch(
        tokens=tokens,
        targets=zeros,
        loss_weights=zeros.float(),
        positions=zeros,
        documents=zeros,
        modality=zeros,
        branches=zeros,
    )
    assert document_sums(batch, specials).over_ranks() == {"separators": 1.0}
    batch.tokens = tokens.clone()
    batch.tokens[0, 4] = specials.sep  # a drawing ends without <eos>
    assert document_sums(batch, specials).over_ranks() == {"separators": 1.0}
    batch.tokens = tokens.masked_fill(tokens == specials.sep, 9)
    assert document_sums(batch, specials).over_ranks() == {"separators": 0.0}
    batch.tokens = torch.full_like(tokens, 9)
    assert document_sums(batch, specials).over_ranks() == {}


def test_dropout_of_a_start_wants_a_bundle() -> None:
    with pytest.raises(ValueError, match=r"start\.dropout, from 0 to 1, is for a run .* a bundle, got 1\.5"):
        StartConfig(bundle=Path(), dropout=1.5)
    with pytest.raises(ValueError, match=r"start\.dropout"):
        StartConfig(dropout=0.1)
