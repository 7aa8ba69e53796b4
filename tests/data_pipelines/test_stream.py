"""The training stream: nothing is lost, the order is a pure function of seed and epoch, and resuming is exact."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchdata.stateful_dataloader import StatefulDataLoader

from data_pipelines.batch import PackedBatch
from data_pipelines.shards import TokenDocument
from data_pipelines.stream import PackedStream, StreamConfig, StreamReport, epoch_batches
from data_pipelines.templates import TemplateConfig
from tests.oracles.pictures import SPACE, caption_document, text

TEMPLATES = TemplateConfig()
CONFIG = StreamConfig(length=32, rows=3, window=16, seed=1)
DOCUMENTS = [caption_document(f"d{i}", length=1 + i % 7, first=i) for i in range(60)]


def numbered(index: int, length: int) -> TokenDocument:
    """Text that begins with its own number, in two digits of base 50."""
    return TokenDocument(key=str(index), segments=(text("text", 10 + index // 50, 10 + index % 50, *[9] * length),))


def numbers(rows: Iterable[Sequence[Any]]) -> list[int]:
    return [int((s.ids[1] - 10) * 50 + s.ids[2] - 10) for row in rows for s in row]


def equal(a: PackedBatch, b: PackedBatch) -> bool:
    names = [field.name for field in dataclasses.fields(PackedBatch)]
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


def all_equal(a: Sequence[PackedBatch], b: Sequence[PackedBatch]) -> bool:
    return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))


def stream(config: StreamConfig = CONFIG, **options: int) -> PackedStream:
    return PackedStream(DOCUMENTS, SPACE, TEMPLATES, config, **options)


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=80),
    rows=st.integers(1, 4),
    window=st.integers(1, 30),
    epoch=st.integers(0, 3),
)
def test_every_document_of_an_epoch_is_trained_once_or_left_out_with_a_reason(
    lengths: list[int], rows: int, window: int, epoch: int
) -> None:
    documents = [numbered(index, length) for index, length in enumerate(lengths)]
    config = StreamConfig(length=24, rows=rows, window=window)
    report = StreamReport()
    batches = list(epoch_batches(documents, SPACE, TEMPLATES, config, epoch, report))
    trained = [number for batch in batches for number in numbers(batch)]
    too_long = sum(length + 4 > 24 for length in lengths)
    assert len(trained) == len(set(trained)) == report.trained
    assert all(lengths[number] + 4 <= 24 for number in trained)
    assert report.documents == len(lengths) == report.trained + sum(report.left_out.values())
    assert report.left_out == ({"longer than a row": too_long} if too_long else {})
    assert all(len(batch) == rows for batch in batches[:-1]) and all(0 < len(batch) <= rows for batch in batches[-1:])
    assert report.tokens == sum(lengths[number] + 4 for number in trained)
    assert report.capacity == sum(len(batch) for batch in batches) * 24


def test_the_efficiency_of_an_epoch_is_its_share_of_tokens_that_are_not_padding() -> None:
    report = StreamReport()
    list(epoch_batches([numbered(0, 8)], SPACE, TEMPLATES, CONFIG, 0, report))
    assert report.efficiency == 12 / 32


def test_the_same_seed_gives_the_same_batches_and_another_seed_others() -> None:
    once, twice = (list(islice(stream(), 12)) for _ in range(2))
    assert all_equal(once, twice)
    other = list(islice(stream(dataclasses.replace(CONFIG, seed=2)), 12))
    assert not any(equal(a, b) for a, b in zip(once, other, strict=True))


def test_epochs_have_the_same_documents_in_another_order() -> None:
    documents = [numbered(index, 3) for index in range(48)]
    config = StreamConfig(length=32, rows=2, window=16)
    orders = [
        [n for batch in epoch_batches(documents, SPACE, TEMPLATES, config, epoch) for n in numbers(batch)]
        for epoch in range(3)
    ]
    assert [sorted(order) for order in orders] == [list(range(48))] * 3
    assert orders[0] != orders[1] != orders[2] != orders[0]
    windows = [frozenset(order[:16]) for order in orders]
    assert len(set(windows)) == 3, "other documents are packed together"


def test_the_stream_goes_on_into_the_next_epoch() -> None:
    epochs = [list(epoch_batches(DOCUMENTS, SPACE, TEMPLATES, CONFIG, epoch)) for epoch in range(2)]
    streamed = stream()
    given_out = list(islice(streamed, len(epochs[0]) + 1))
    assert streamed.state_dict()["epoch"] == 1 and streamed.state_dict()["batches"] == 1
    first = np.concatenate([sequence.ids for sequence in epochs[1][0][0]])
    assert given_out[-1].tokens[0, : len(first)].tolist() == first.tolist()


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 5, 13])
def test_a_resumed_loader_gives_bit_equal_batches(num_workers: int, stop: int) -> None:
    """13 batches reach into the second epoch."""

    def loader() -> StatefulDataLoader[PackedBatch]:
        return StatefulDataLoader(stream(), batch_size=None, num_workers=num_workers)

    unbroken = iter(loader_before := loader())
    list(islice(unbroken, stop))
    state = loader_before.state_dict()
    expected = list(islice(unbroken, 6))
    resumed = loader()
    resumed.load_state_dict(state)
    assert all_equal(list(islice(iter(resumed), 6)), expected)


def test_thirteen_batches_are_more_than_an_epoch_and_five_are_not() -> None:
    assert 6 < len(list(epoch_batches(DOCUMENTS, SPACE, TEMPLATES, CONFIG, 0))) < 13


def test_ranks_see_disjoint_batches_that_together_are_the_epoch() -> None:
    epoch = list(epoch_batches(DOCUMENTS, SPACE, TEMPLATES, CONFIG, 0))
    half = len(epoch) // 2
    ranks = [list(islice(stream(rank=rank, world_size=2), half)) for rank in range(2)]
    together = [batch for pair in zip(*ranks, strict=True) for batch in pair]
    assert all_equal(together, list(islice(stream(), 2 * half)))
    seen = [tuple(batch.tokens.flatten().tolist()) for batch in together]
    assert len(set(seen)) == len(seen) == 2 * half


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_all_ranks_end_an_epoch_at_the_same_step_and_every_batch_is_seen_once(world_size: int) -> None:
    epoch = list(epoch_batches(DOCUMENTS, SPACE, TEMPLATES, CONFIG, 0))
    rounds = -(-len(epoch) // world_size)
    ranks = [stream(rank=rank, world_size=world_size) for rank in range(world_size)]
    given_out = [list(islice(rank, rounds)) for rank in ranks]
    states = [rank.state_dict() for rank in ranks]
    assert states == [states[0]] * world_size and states[0]["epoch"] == 0 and states[0]["batches"] == rounds
    together = [batch for group in zip(*given_out, strict=True) for batch in group]
    assert all_equal(together[: len(epoch)], list(islice(stream(), len(epoch))))
    padding = together[len(epoch) :]
    assert len(padding) == -len(epoch) % world_size
    assert all(bool((b.documents == -1).all()) and not b.loss_weights.any() for b in padding)


def test_workers_together_give_the_same_batches_as_none() -> None:
    loader = StatefulDataLoader(stream(), batch_size=None, num_workers=2)
    half = len(list(epoch_batches(DOCUMENTS, SPACE, TEMPLATES, CONFIG, 0))) // 2
    assert all_equal(list(islice(iter(loader), 2 * half)), list(islice(stream(), 2 * half)))


def test_going_on_with_another_number_of_ranks_is_refused() -> None:
    two = stream(rank=0, world_size=2)
    next(iter(two))
    with pytest.raises(ValueError, match="saved with 2 ranks x workers and cannot go on with 1"):
        stream().load_state_dict(two.state_dict())


def test_a_few_documents_are_padded_to_a_whole_batch() -> None:
    (batch,) = islice(PackedStream(DOCUMENTS[:2], SPACE, TEMPLATES, CONFIG), 1)
    assert batch.tokens.shape == (3, 32)
    assert 0 < batch.num_tokens < 40 and (batch.documents[-1] == -1).all()


def test_documents_that_give_no_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="no document to train on"):
        PackedStream([], SPACE, TEMPLATES, CONFIG)
    too_long = PackedStream([numbered(0, 40), numbered(1, 50)], SPACE, TEMPLATES, CONFIG)
    with pytest.raises(ValueError, match=r"2 documents give no batch of 3 rows of 32 tokens .* fewer or longer rows"):
        next(iter(too_long))


def test_documents_left_out_of_training_are_told_once_an_epoch(caplog: pytest.LogCaptureFixture) -> None:
    documents = [*(numbered(i, 5) for i in range(6)), numbered(6, 40), numbered(7, 40)]
    list(islice(PackedStream(documents, SPACE, TEMPLATES, CONFIG), 2))  # the second batch is of the second epoch
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told == ["epoch 0: left out 2 of 8 documents: longer than a row"]
