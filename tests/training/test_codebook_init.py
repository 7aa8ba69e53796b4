"""Codes that look alike begin alike, and nothing else of the model changes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.oracles.tiny import tiny_image_tokenizer, tiny_model, tiny_shards
from tests.oracles.tiny_training import fit_arguments
from tokenizers_vq.token_space import FixedLayout, GridLayout, TokenSpace
from unimodal.model.config import INIT_STD
from unimodal.training.cli import run
from unimodal.training.codebook_init import CodebookInitConfig, init_from_codebook, projected

TOKENIZER = tiny_image_tokenizer()
SPACE = TokenSpace(
    text_size=30,
    text_hash="",
    codebook_size=TOKENIZER.codebook_size,
    image_hash="",
    layout=FixedLayout(rows=2, columns=2),
)
EMBEDDING, HEAD = "trunk.embedding.weight", "heads.tokens.weight"
GRID = dataclasses.replace(SPACE, layout=GridLayout(sizes=((1, 4), (2, 2))))


def test_neighbours_in_the_codebook_begin_as_neighbours_in_the_model() -> None:
    vectors = TOKENIZER.quantizer.lookup(torch.arange(TOKENIZER.codebook_size)[None])[0]
    rows = projected(vectors, 4096)
    wide = torch.cdist(rows, rows).flatten()
    normal = (vectors - vectors.mean(0)) / vectors.std(0)
    narrow = torch.cdist(normal, normal).flatten()
    assert torch.corrcoef(torch.stack([wide, narrow]))[0, 1] > 0.99
    assert rows.std() == pytest.approx(INIT_STD, rel=0.1)


@pytest.mark.parametrize("space", [SPACE, GRID])
@pytest.mark.parametrize("head", [False, True])
def test_only_the_rows_of_image_codes_change(head: bool, space: TokenSpace) -> None:
    model = tiny_model(space.vocab_size)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    init_from_codebook(model, space, TOKENIZER, CodebookInitConfig(head=head))
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == ({EMBEDDING, HEAD} if head else {EMBEDDING})
    embedding, old = model.trunk.embedding.weight, before[EMBEDDING]
    assert torch.equal(embedding[: space.image_offset], old[: space.image_offset])
    assert (embedding[space.image_offset :] != old[space.image_offset :]).any(1).all()


@pytest.mark.slow
def test_training_begins_so_where_the_config_asks_for_it(tmp_path: Path) -> None:
    shards = tiny_shards(tmp_path / "shards")
    arguments = fit_arguments(shards, tmp_path / "run", trainer__max_steps=1, model__start__codebook__head="false")
    rate = ["--model.optimizer=unimodal.training.optimizers.build.AdamWConfig", "--model.optimizer.learning_rate=0"]
    model = run([*arguments, *rate]).model.model
    rows = model.trunk.embedding.weight[-TOKENIZER.codebook_size :]
    assert torch.linalg.matrix_rank(rows.float(), rtol=1e-4) == TOKENIZER.config.quantizer.dim


@pytest.mark.slow
def test_without_an_image_tokenizer_it_is_refused_in_one_line(tmp_path: Path) -> None:
    shards = tiny_shards(tmp_path / "shards")
    (shards / "image_tokenizer").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"codebook_init needs the image tokenizer, and .*shards holds no image_tok"):
        run(fit_arguments(shards, tmp_path / "run", trainer__max_steps=1, model__start__codebook__head="false"))
