"""The training stream: nothing is lost, the order is a pure function of seed and position, and resuming is exact."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchdata.stateful_dataloader import StatefulDataLoader

from data_pipelines.batch import PackedBatch
from data_pipelines.mixture import MixtureConfig
from data_pipelines.planning import TOO_LONG, Plan, StreamConfig, StreamReport
from data_pipelines.shards import TokenDocument
from data_pipelines.shards.documents import Documents
from data_pipelines.stream import PackedStream, epoch_batches
from data_pipelines.templates import TemplateConfig
from tests.oracles.pictures import SPACE, caption_document, image, text

TEMPLATES = TemplateConfig()
CONFIG = StreamConfig(length=32, rows=3, window=16, seed=1)
DOCUMENTS = Documents([[caption_document(f"d{i}", length=1 + i % 7, first=i) for i in range(60)]])
OTHERS = Documents([[caption_document(f"o{i}", length=2 + i % 5, first=3 * i) for i in range(25)]])
STAGES = MixtureConfig(weights=(2, 1), second_weights=(1, 4))


def numbered(index: int, length: int = 3) -> TokenDocument:
    """Text that begins with its own number, in two digits of base 50."""
    return TokenDocument(key=str(index), segments=(text("text", 10 + index // 50, 10 + index % 50, *[9] * length),))


def with_pictures(index: int, pictures: int) -> TokenDocument:
    """Its number, then pictures of 6 ids each."""
    segments = (text("text", 10 + index // 50, 10 + index % 50), *(image(1, 2, 3, 4) for _ in range(pictures)))
    return TokenDocument(key=str(index), segments=segments, meta={"layout": "interleaved"})


def numbers(rows: Iterable[Sequence[Any]]) -> list[int]:
    return [int((s.ids[1] - 10) * 50 + s.ids[2] - 10) for row in rows for s in row]


def equal(a: PackedBatch, b: PackedBatch, atol: float = 0.0) -> bool:
    """In every field, media among them, whose values may differ by `atol`."""
    names = [field.name for field in dataclasses.fields(PackedBatch) if field.name not in ("spans", "media")]
    pairs = [(getattr(a, name), getattr(b, name)) for name in names]
    if a.media.keys() != b.media.keys() or (a.spans is None) != (b.spans is None):
        return False
    if a.spans is not None:
        pairs.append((a.spans, b.spans))
    for name, packed in a.media.items():
        other = b.media[name]
        pairs += [(getattr(packed, part), getattr(other, part)) for part in ("index", "row_col", "spans", "weights")]
        if packed.grids != other.grids or (packed.values.float() - other.values.float()).abs().max() > atol:
            return False
    return all(torch.equal(one, two) for one, two in pairs)


def all_equal(a: Sequence[PackedBatch], b: Sequence[PackedBatch], *, atol: float = 0.0) -> bool:
    return len(a) == len(b) and all(equal(x, y, atol) for x, y in zip(a, b, strict=True))


def stream(config: StreamConfig = CONFIG, **options: Any) -> PackedStream:
    return PackedStream([DOCUMENTS], SPACE, TEMPLATES, config, **options)


def mixed(**options: Any) -> PackedStream:
    """Two sources in two stages, of which the second begins after five rounds."""
    return PackedStream([DOCUMENTS, OTHERS], SPACE, TEMPLATES, CONFIG, STAGES, second_stage_round=5, **options)


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(0, 60), max_size=40),
    pictures=st.lists(st.integers(1, 9), max_size=20),
    capacity=st.integers(4, 24),
    rows=st.integers(1, 4),
    window=st.integers(1, 30),
)
def test_in_one_pass_every_id_is_trained_once_or_its_document_is_skipped_with_a_reason(
    lengths: list[int], pictures: list[int], capacity: int, rows: int, window: int
) -> None:
    plain = [numbered(index, length) for index, length in enumerate(lengths)]
    documents = [*plain, *(with_pictures(len(plain) + index, count) for index, count in enumerate(pictures))]
    report = StreamReport()
    config = StreamConfig(length=capacity, rows=rows, window=window)
    if not plain and pictures and capacity < 1 + 7:
        with pytest.raises(ValueError, match="none of"):
            list(epoch_batches(documents, SPACE, TEMPLATES, config, report))
        return
    batches = list(epoch_batches(documents, SPACE, TEMPLATES, config, report))
    sequences = [sequence for batch in batches for row in batch for sequence in row]
    skipped = len(pictures) if capacity < 1 + 7 else 0
    assert report.skipped == ({TOO_LONG: skipped} if skipped else {})
    assert report.documents == len(documents) == report.trained + skipped
    fitting = [] if skipped else pictures
    assert all(s.ids[0] == SPACE.specials.bos and SPACE.specials.bos not in s.ids[1:] for s in sequences)
    ids = sum(length + 3 for length in lengths) + sum(6 * count + 3 for count in fitting)
    assert sum(len(s) - 1 for s in sequences) == ids, "beside <bos>, each id once"
    begun = sum(int((s.ids == SPACE.specials.boi).sum()) for s in sequences)
    assert begun == sum(fitting)
    for sequence in sequences:
        (starts,) = (sequence.ids == SPACE.specials.boi).nonzero()
        assert all(sequence.ids[start + 5] == SPACE.specials.eoi for start in starts), "no image is cut"
    assert all(sum(map(len, row)) <= capacity for batch in batches for row in batch)
    assert all(len(batch) == rows for batch in batches[:-1]) and all(0 < len(batch) <= rows for batch in batches[-1:])
    assert report.tokens == sum(map(len, sequences)) and report.capacity == sum(map(len, batches)) * capacity


@settings(deadline=None)
@given(
    sizes=st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=4), min_size=1, max_size=3).filter(
        lambda sizes: all(map(sum, sizes))
    ),
    weights=st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=3, max_size=3),
    window=st.integers(1, 12),
    together=st.integers(1, 3),
    rows=st.integers(1, 30),
)
def test_of_every_mixture_each_document_is_trained_or_waits_and_none_comes_twice_in_an_epoch(
    sizes: list[list[int]], weights: list[float], window: int, together: int, rows: int
) -> None:
    sources = [Documents([[numbered(i, i % 5) for i in range(size)] for size in shards]) for shards in sizes]
    config = StreamConfig(length=20, rows=1, window=window, shards_together=together)
    plan = Plan(sources, SPACE, TEMPLATES, config, MixtureConfig(weights=tuple(weights[: len(sizes)])))
    given_out = [part for row, _ in plan.take(rows) for part in row]
    waiting = [*plan.waiting, *(part for row in plan.rows for part in row)]
    drawn = [*given_out, *waiting]
    assert len(set(drawn)) == len(drawn)
    for source, report in enumerate(plan.report.sources):
        of_source = [part for part in drawn if part.source == source]
        assert report.documents == len(of_source) == report.trained + sum(part.source == source for part in waiting)
        cursor, total = plan.mixture.cursors[source], sum(sizes[source])
        for epoch in range(cursor.epoch):
            assert sorted(part.index for part in of_source if part.epoch == epoch) == list(range(total))
        assert sum(part.epoch == cursor.epoch for part in of_source) == cursor.taken


def test_the_efficiency_is_the_share_of_tokens_that_are_not_padding() -> None:
    report = StreamReport()
    list(epoch_batches([numbered(0, 8)], SPACE, TEMPLATES, CONFIG, report))
    assert report.efficiency == 12 / 32


def test_the_same_seed_gives_the_same_batches_and_another_seed_others() -> None:
    once, twice = (list(islice(stream(), 12)) for _ in range(2))
    assert all_equal(once, twice)
    other = list(islice(stream(dataclasses.replace(CONFIG, seed=2)), 12))
    assert not any(equal(a, b) for a, b in zip(once, other, strict=True))


def test_epochs_have_the_same_documents_in_another_order() -> None:
    documents = Documents([[numbered(index) for index in range(48)]])
    config = StreamConfig(length=7, rows=1, window=16)
    plan = Plan([documents], SPACE, TEMPLATES, config, MixtureConfig(weights=(1,)))
    order = [part for row, _ in plan.take(3 * 48) for part in row]
    epochs = [[part.index for part in order if part.epoch == epoch] for epoch in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(48))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert len({frozenset(epoch[:16]) for epoch in epochs}) == 3, "other documents are packed together"


@pytest.mark.slow
@pytest.mark.parametrize("make", [stream, mixed])
@pytest.mark.parametrize("num_workers", [0, 2, 4])
@pytest.mark.parametrize("stop", [1, 5, 13])
def test_a_resumed_loader_gives_bit_equal_batches(make: Any, num_workers: int, stop: int) -> None:
    """13 batches reach into the second epoch, and 5 into the second stage of the mixture."""

    def loader() -> StatefulDataLoader[PackedBatch]:
        return StatefulDataLoader(make(), batch_size=None, num_workers=num_workers)

    unbroken = iter(loader_before := loader())
    list(islice(unbroken, stop))
    state = loader_before.state_dict()
    expected = list(islice(unbroken, 6))
    resumed = loader()
    resumed.load_state_dict(state)
    assert all_equal(list(islice(iter(resumed), 6)), expected)


def test_thirteen_batches_are_more_than_an_epoch_and_five_are_not() -> None:
    assert 6 < len(list(epoch_batches(DOCUMENTS, SPACE, TEMPLATES, CONFIG))) < 13


def test_the_position_is_made_of_plain_numbers_and_holds_no_document() -> None:
    streamed = mixed()
    list(islice(streamed, 7))
    state = json.loads(json.dumps(streamed.state_dict()))
    assert state == streamed.state_dict()
    again = mixed()
    again.load_state_dict(state)
    assert all_equal(list(islice(again, 4)), list(islice(streamed, 4)))
    assert len(json.dumps(state)) < 4000


def test_ranks_see_disjoint_batches_that_together_are_those_of_one_rank() -> None:
    ranks = [list(islice(mixed(rank=rank, world_size=2), 6)) for rank in range(2)]
    together = [batch for pair in zip(*ranks, strict=True) for batch in pair]
    one = PackedStream([DOCUMENTS, OTHERS], SPACE, TEMPLATES, CONFIG, STAGES, second_stage_round=10)
    assert all_equal(together, list(islice(one, 12)))
    seen = [tuple(batch.tokens.flatten().tolist()) for batch in together]
    assert len(set(seen)) == len(seen) == 12


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_where_a_mixture_ends_all_ranks_end_at_the_same_step_and_every_row_is_seen_once(world_size: int) -> None:
    once = MixtureConfig(weights=(1,), when_dry="stop")
    expected = list(epoch_batches(DOCUMENTS, SPACE, TEMPLATES, CONFIG))
    ranks = [stream(mixture=once, rank=rank, world_size=world_size) for rank in range(world_size)]
    given_out = [list(rank) for rank in ranks]
    states = [rank.state_dict() for rank in ranks]
    assert states == [states[0]] * world_size
    assert {len(batches) for batches in given_out} == {-(-len(expected) // world_size)}
    together = [batch for group in zip(*given_out, strict=True) for batch in group]
    rows = [
        row.tolist()
        for batch in together
        for row, used in zip(batch.tokens, batch.documents, strict=True)
        if used[0] >= 0
    ]
    assert len(rows) == sum(map(len, expected)) and len({tuple(row) for row in rows}) == len(rows)
    assert all(not b.loss_weights[b.documents < 0].any() for b in together)


@pytest.mark.parametrize("num_workers", [2, 3])
def test_workers_together_give_the_same_batches_as_none(num_workers: int) -> None:
    loader = StatefulDataLoader(mixed(), batch_size=None, num_workers=num_workers)
    assert all_equal(list(islice(iter(loader), 12)), list(islice(mixed(), 12)))


@pytest.mark.parametrize(("before", "after"), [(1, 2), (3, 1), (2, 4)])
def test_another_number_of_ranks_goes_on_with_every_document_that_is_left_and_no_other(before: int, after: int) -> None:
    def plan_of(world_size: int) -> PackedStream:
        return stream(mixture=MixtureConfig(weights=(1,), when_dry="stop"), world_size=world_size)

    first = plan_of(before)
    seen = list(islice(first, 2))
    assert len(seen) == 2
    rest = []
    for rank in range(after):
        resumed = stream(mixture=MixtureConfig(weights=(1,), when_dry="stop"), rank=rank, world_size=after)
        resumed.load_state_dict(first.state_dict())
        rest += [tuple(row.tolist()) for batch in resumed for row in batch.tokens if row.any()]
    ours = [
        tuple(row.tolist())
        for rank in range(before)
        for batch in islice(
            stream(mixture=MixtureConfig(weights=(1,), when_dry="stop"), rank=rank, world_size=before), 2
        )
        for row in batch.tokens
        if row.any()
    ]
    whole = [tuple(row.tolist()) for batch in plan_of(1) for row in batch.tokens if row.any()]
    assert sorted(ours + rest) == sorted(whole)


def test_with_loader_processes_another_number_of_them_is_refused_with_the_reason() -> None:
    loader = StatefulDataLoader(stream(), batch_size=None, num_workers=2)
    next(iter(loader))
    state = loader.state_dict()["_snapshot"]["_worker_snapshots"]["worker_0"]["dataset_state"]
    assert state["workers"] == 2
    with pytest.raises(ValueError, match="1 ranks of 2 loader processes each and cannot resume exactly with 1 of 1"):
        stream().load_state_dict(state)


def test_a_few_documents_fill_a_batch_by_being_repeated() -> None:
    documents = Documents([[caption_document("a", 2), caption_document("b", 3)]])
    (batch,) = islice(PackedStream([documents], SPACE, TEMPLATES, CONFIG), 1)
    assert batch.tokens.shape == (3, 32) and batch.num_tokens > 64


def test_documents_that_give_no_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="no document to train on"):
        PackedStream([Documents([[]])], SPACE, TEMPLATES, CONFIG)
    short = dataclasses.replace(CONFIG, length=7)
    too_long = PackedStream([Documents([[with_pictures(0, 1), with_pictures(1, 2)]])], SPACE, TEMPLATES, short)
    with pytest.raises(ValueError, match=r"none of \d+ documents fits a row of 7 tokens; use longer rows"):
        next(iter(too_long))


def test_what_became_of_a_source_is_told_when_it_is_begun_anew(caplog: pytest.LogCaptureFixture) -> None:
    documents = [*(numbered(i) for i in range(6)), with_pictures(6, 1)]
    short = StreamConfig(length=7, rows=1, window=7)
    with caplog.at_level(logging.INFO):
        list(islice(PackedStream([Documents([documents])], SPACE, TEMPLATES, short, names=["here"]), 7))
    told = [record.getMessage() for record in caplog.records]
    assert told[0] == "here: epoch 0 is done; 14 documents drawn, 7 trained, 0 of them in parts; rows are 100.0% full"
    assert told[1] == f"here: skipped 2 of 14 documents: {TOO_LONG}"
