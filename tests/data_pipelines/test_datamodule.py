"""Data modules: what is held out is never trained, and shards that do not belong together are refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import pytest
import torch
from PIL import Image

from data_pipelines.batch import PackedBatch, collate
from data_pipelines.datamodule import ImageDataModule, TokenDataModule
from data_pipelines.mixture import MixtureConfig
from data_pipelines.planning import StreamConfig
from data_pipelines.shards import ShardWriter, TokenDocument
from data_pipelines.stream import FixedBatches, epoch_batches
from data_pipelines.templates import TemplateConfig
from tests.oracles.pictures import SPACE, text
from tokenizers_vq.token_space import TokenSpace, TokenSpaceMismatch

STREAM = StreamConfig(length=24, rows=2, window=32)
TEMPLATES = TemplateConfig()


def numbered(index: int, copy: int) -> TokenDocument:
    """Text that begins with its own number, in two digits of base 50."""
    key = f"doc-{index}" if copy == 0 else f"doc-{index}+{copy}"
    return TokenDocument(key=key, segments=(text("text", 10 + index // 50, 10 + index % 50, 9),))


def write(folder: Path, documents: Sequence[TokenDocument], space: TokenSpace = SPACE) -> Path:
    with ShardWriter(folder, space, image_policy={}, source={}) as writer:
        for document in documents:
            writer.write(document)
    return folder


def module(*folders: Path, share: float = 0.2) -> TokenDataModule:
    data = TokenDataModule([str(folder) for folder in folders], STREAM, TEMPLATES, validation_share=share)
    data.setup("fit")
    return data


def numbers(batches: Iterable[PackedBatch]) -> set[int]:
    """Which documents occur, read from the token after each <bos>."""
    found = set()
    for batch in batches:
        rows, columns = (batch.tokens == SPACE.specials.bos).nonzero(as_tuple=True)
        high, low = batch.tokens[rows, columns + 1], batch.tokens[rows, columns + 2]
        found |= set(((high - 10) * 50 + low - 10).tolist())
    return found


def test_held_out_documents_are_never_trained_and_none_is_lost(tmp_path: Path) -> None:
    data = module(write(tmp_path, [numbered(index, copy) for index in range(200) for copy in range(3)]))
    trained = numbers(islice(data.train_dataloader(), 150))
    held_out = numbers(data.val_dataloader())
    assert trained and not trained & held_out
    assert trained | held_out == set(range(200))
    assert 20 < len(held_out) < 60
    assert numbers(data.test_dataloader()) == set(range(200))


def test_copies_of_a_document_fall_on_the_same_side(tmp_path: Path) -> None:
    data = module(write(tmp_path, [numbered(index, copy) for index in range(100) for copy in range(4)]))
    sides = [{document.key.split("+")[0] for document in side} for side in (data.train_sources[0], data.val_documents)]
    assert not sides[0] & sides[1] and all(sides)
    assert len(data.train_sources[0]) == 4 * len(sides[0]) and len(data.val_documents) == 4 * len(sides[1])


def test_a_share_of_nothing_holds_nothing_out(tmp_path: Path) -> None:
    data = module(write(tmp_path, [numbered(index, 0) for index in range(30)]), share=0.0)
    assert len(data.train_sources[0]) == 30 and len(data.val_dataloader()) == 0


def test_validation_gives_the_same_batches_whatever_the_seed(tmp_path: Path) -> None:
    folder = write(tmp_path, [numbered(index, 0) for index in range(90)])
    first, second = module(folder), module(folder)
    second.stream = dataclasses.replace(STREAM, seed=9)
    pairs = zip(first.val_dataloader(), second.val_dataloader(), strict=True)
    assert all(torch.equal(a.tokens, b.tokens) for a, b in pairs)


def test_several_folders_are_read_as_one(tmp_path: Path) -> None:
    a = write(tmp_path / "a", [numbered(index, 0) for index in range(40)])
    b = write(tmp_path / "b", [numbered(index, 0) for index in range(40, 80)])
    data = module(a, b)
    assert len(data.train_sources[0]) + len(data.val_documents) == 80


def test_shards_with_different_token_spaces_are_refused_and_both_named(tmp_path: Path) -> None:
    documents = [numbered(0, 0)]
    a = write(tmp_path / "a", documents)
    b = write(tmp_path / "b", documents, dataclasses.replace(SPACE, image_hash="other"))
    with pytest.raises(
        TokenSpaceMismatch, match=r"/a and .*/b have different token spaces: image_hash is i+ and other"
    ):
        module(a, b)


def test_a_mixture_takes_turns_between_folders_and_holds_out_of_each(tmp_path: Path) -> None:
    a = write(tmp_path / "a", [numbered(index, 0) for index in range(100)])
    b = write(tmp_path / "b", [numbered(index, 0) for index in range(100, 200)])
    data = TokenDataModule([str(a), str(b)], STREAM, TEMPLATES, MixtureConfig(weights=(3, 1)), validation_share=0.2)
    data.setup("fit")
    assert [len(source) for source in data.train_sources] == [
        100 - sum(int(d.key[4:]) < 100 for d in data.val_documents),
        100 - sum(int(d.key[4:]) >= 100 for d in data.val_documents),
    ]
    seen = []
    for batch in islice(data.train_dataloader(), 20):
        rows, columns = (batch.tokens == SPACE.specials.bos).nonzero(as_tuple=True)
        seen += ((batch.tokens[rows, columns + 1] - 10) * 50 + batch.tokens[rows, columns + 2] - 10).tolist()
    assert 0.7 < sum(number < 100 for number in seen) / len(seen) < 0.8


def test_a_mixture_of_two_stages_needs_to_know_how_long_the_run_is(tmp_path: Path) -> None:
    folder = write(tmp_path, [numbered(index, 0) for index in range(30)])
    mixture = MixtureConfig(weights=(1,), second_weights=(2,))
    data = TokenDataModule([str(folder)], STREAM, TEMPLATES, mixture)
    data.setup("fit")
    with pytest.raises(ValueError, match=r"two stages needs trainer\.max_steps"):
        data.train_dataloader()


def test_wrong_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"validation share lies in \[0, 1\), got 1.0"):
        TokenDataModule([str(tmp_path)], validation_share=1.0)
    with pytest.raises(ValueError, match="name at least one folder"):
        TokenDataModule([]).setup("fit")


def picture_folder(folder: Path, number: int) -> Path:
    folder.mkdir()
    rows = []
    for index in range(number):
        Image.new("RGB", (16, 16), (index * 10, 0, 0)).save(folder / f"{index}.png")
        rows.append(json.dumps({"file_name": f"{index}.png", "text": "red"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


def reds(batches: Iterable[torch.Tensor]) -> set[int]:
    return {int(value) for batch in batches for value in ((batch[:, 0, 0, 0] + 1) * 12.75).round().tolist()}


def test_held_out_pictures_are_never_trained_and_none_is_lost(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "pictures", 25)
    data = ImageDataModule("imagefolder", folder, image_size=16, batch_size=4, validation_images=10)
    data.setup("fit")
    trained, held_out = reds(islice(data.train_dataloader(), 100)), reds(data.val_dataloader())
    assert not trained & held_out and trained | held_out == set(range(25))
    assert len(held_out) == 3, "no more than about a tenth"
    assert reds(data.test_dataloader()) == set(range(25))


def test_a_single_picture_is_too_little_to_train_a_tokenizer(tmp_path: Path) -> None:
    data = ImageDataModule("imagefolder", picture_folder(tmp_path / "one", 1), image_size=16)
    with pytest.raises(ValueError, match="gave 1 pictures; a tokenizer needs at least 2"):
        data.setup("fit")


def test_validation_is_read_when_it_is_used_and_equals_what_was_packed_at_once(tmp_path: Path) -> None:
    """Batches of the data module against those of one pass, bit by bit; any order, any number of times."""
    data = module(write(tmp_path, [numbered(i, 0) for i in range(120)]), share=0.5)
    config = dataclasses.replace(STREAM, seed=0)
    passes = epoch_batches(data.val_documents, SPACE, TEMPLATES, config)
    expected = [collate(rows, config.length, SPACE) for rows in passes]
    fixed = FixedBatches(data.val_documents, SPACE, TEMPLATES, config)
    assert len(fixed) == len(expected) > 5
    for order in (range(len(fixed)), reversed(range(len(fixed))), [3, 3, 0]):
        for index in order:
            assert torch.equal(fixed[index].tokens, expected[index].tokens)
            assert torch.equal(fixed[index].loss_weights, expected[index].loss_weights)
    assert not any(isinstance(value, torch.Tensor) for batch in fixed.batches for row in batch for value in row)
    assert len(list(data.val_dataloader())) == len(expected)
    data.validation_batches = 3
    some = list(data.val_dataloader())
    assert len(some) == 3 and all(torch.equal(a.tokens, b.tokens) for a, b in zip(some, expected, strict=False))
    with pytest.raises(ValueError, match="validation takes at least 1 batch"):
        TokenDataModule([str(tmp_path)], validation_batches=0)
    assert len(FixedBatches([], SPACE, TEMPLATES, config)) == 0


@pytest.mark.parametrize("ranks", [2, 3, 50])
def test_ranks_share_the_batches_of_validation_and_have_equally_many(tmp_path: Path, ranks: int) -> None:
    data = module(write(tmp_path, [numbered(i, 0) for i in range(120)]), share=0.5)
    config = dataclasses.replace(STREAM, seed=0)

    def share_of(rank: int, world_size: int) -> list[PackedBatch]:
        fixed = FixedBatches(data.val_documents, SPACE, TEMPLATES, config, None, rank, world_size)
        return [fixed[index] for index in range(len(fixed))]

    alone, shares = share_of(0, 1), [share_of(rank, ranks) for rank in range(ranks)]
    assert {len(share) for share in shares} == {-(-len(alone) // ranks)}
    rounds = [batch for batches in zip(*shares, strict=True) for batch in batches]
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(alone, rounds, strict=False))
    assert [batch.num_tokens for batch in rounds[len(alone) :]] == [0] * (len(rounds) - len(alone))
