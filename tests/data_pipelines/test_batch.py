"""PackedBatch: targets are shifted inside documents and branches, compared with a loop that is slow and obvious."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.batch import PackedBatch, collate
from data_pipelines.outline import Rendered
from tests.oracles.pictures import GRID_SPACE, SPACE
from tokenizers_vq.token_space import TokenSpace

LENGTH = 24
SPACES = [SPACE, GRID_SPACE]
FIELDS = [field.name for field in dataclasses.fields(PackedBatch) if field.name not in ("spans", "media")]


@st.composite
def sequences(draw: st.DrawFn) -> Rendered:
    """A trunk and a few branches of random ids and weights."""
    runs = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    branches = np.repeat(np.arange(len(runs)), runs)
    ids = draw(st.lists(st.integers(0, SPACE.vocab_size - 1), min_size=sum(runs), max_size=sum(runs)))
    weights = draw(st.lists(st.sampled_from([0.0, 0.1, 1.0]), min_size=sum(runs), max_size=sum(runs)))
    positions = [*range(runs[0]), *(runs[0] + i for run in runs[1:] for i in range(run))]
    return Rendered(
        np.asarray(ids, dtype=np.int64),
        np.asarray(weights, dtype=np.float32),
        branches.astype(np.int32),
        np.asarray(positions, dtype=np.int64),
    )


def row_by_hand(row: list[Rendered], space: TokenSpace) -> dict[str, list[float]]:
    """Token by token: what stands here, and what comes next in the same branch of the same document."""
    out: dict[str, list[float]] = {name: [] for name in FIELDS}
    for number, sequence in enumerate(row):
        for i in range(len(sequence)):
            follows = i + 1 < len(sequence) and sequence.branches[i + 1] == sequence.branches[i]
            target = int(sequence.ids[i + 1]) if follows else space.specials.pad
            out["tokens"].append(int(sequence.ids[i]))
            out["targets"].append(target)
            out["loss_weights"].append(float(sequence.weights[i + 1]) if follows else 0.0)
            out["positions"].append(int(sequence.positions[i]))
            out["documents"].append(number)
            out["branches"].append(int(sequence.branches[i]))
            out["modality"].append(0 if target in range(space.text_size) else 1)
    for _ in range(LENGTH - len(out["tokens"])):
        padding = {"tokens": 0, "targets": 0, "documents": -1, "modality": -1}
        for name in FIELDS:
            out[name].append(padding.get(name, 0))
    return out


def fit_into_rows(drawn: list[list[Rendered]]) -> list[list[Rendered]]:
    """Leave out what passes the row's end."""
    rows = []
    for row in drawn:
        kept: list[Rendered] = []
        for sequence in row:
            if sum(map(len, kept)) + len(sequence) <= LENGTH:
                kept.append(sequence)
        rows.append(kept)
    return rows


@pytest.mark.slow
@settings(deadline=None)
@given(drawn=st.lists(st.lists(sequences(), max_size=5), min_size=1, max_size=3), space=st.sampled_from(SPACES))
def test_every_field_of_every_token_is_what_a_slow_loop_says(drawn: list[list[Rendered]], space: TokenSpace) -> None:
    rows = fit_into_rows(drawn)
    batch = collate(rows, LENGTH, space)
    for index, row in enumerate(rows):
        for name, expected in row_by_hand(row, space).items():
            found = getattr(batch, name)[index]
            assert found.tolist() == pytest.approx(expected), name
    assert batch.num_tokens == sum(len(sequence) for row in rows for sequence in row)


def plain(*ids: int) -> Rendered:
    return Rendered(np.array(ids), np.ones(len(ids), np.float32), np.zeros(len(ids), np.int32), np.arange(len(ids)))


def test_shapes_and_types_are_as_contracted() -> None:
    batch = collate([[plain(1, 2)], [plain(1, 100, 2), plain(3)]], 6, SPACE)
    for name in FIELDS:
        tensor = getattr(batch, name)
        assert tensor.shape == (2, 6)
        assert tensor.dtype == (torch.float32 if name == "loss_weights" else torch.int64)


def test_sizes_and_ends_of_rows_count_as_image_and_the_borders_as_text() -> None:
    specials = GRID_SPACE.specials
    body = GRID_SPACE.image_body([104, 105, 106, 107], (2, 2))
    batch = collate([[plain(specials.bos, specials.boi, *body, specials.eoi, 9)]], 14, GRID_SPACE)
    assert batch.modality.tolist() == [[0, *[1] * 7, 0, 0, 0, -1, -1, -1]]


def test_nothing_is_predicted_across_the_border_of_documents() -> None:
    batch = collate([[plain(10, 11), plain(12, 13)]], 5, SPACE)
    assert batch.targets.tolist() == [[11, 0, 13, 0, 0]]
    assert batch.loss_weights.tolist() == [[1, 0, 1, 0, 0]]


def test_a_row_that_overflows_is_refused() -> None:
    with pytest.raises(ValueError, match="7 tokens do not fit a row of 6"):
        collate([[plain(1, 2, 3, 4), plain(5, 6, 7)]], 6, SPACE)


def test_missing_rows_are_padding() -> None:
    batch = collate([[plain(1, 2)]], 4, SPACE, num_rows=3)
    assert batch.tokens.shape == (3, 4) and batch.num_tokens == 2
    assert (batch.documents[1:] == -1).all() and (batch.modality[1:] == -1).all()
    assert batch.loss_weights[1:].sum() == 0


def test_some_rows_and_another_device_keep_every_field() -> None:
    batch = collate([[plain(1, 2)], [plain(3, 4)], [plain(5, 6)]], 4, SPACE)
    part = batch.rows(1, 3)
    assert part.tokens[:, 0].tolist() == [3, 5] and part.documents.shape == (2, 4)
    meta = batch.to("meta")
    assert {getattr(meta, name).device.type for name in FIELDS} == {"meta"}


def test_facts_are_found_once_and_move_with_the_batch() -> None:
    """Ends of documents by a loop over tokens; a batch that was changed finds its facts anew."""
    documents = torch.tensor([[0, 0, 0, 1, 1, -1], [0, 1, 2, 2, 2, 2]])
    zeros = torch.zeros_like(documents)
    weights = torch.tensor([[0, 1, 1, 0, 1, 0], [0, 0, 0, 1, 1, 0]]).float()
    columns = dict.fromkeys(("tokens", "targets", "positions", "modality"), zeros)
    batch = PackedBatch(**columns, documents=documents, loss_weights=weights, branches=zeros)
    flat, ends = [(row, int(number)) for row in range(2) for number in documents[row]], [0]
    for index in range(len(flat)):
        if index + 1 == len(flat) or flat[index + 1] != flat[index]:
            ends.append(index + 1)
    facts = batch.facts
    assert facts.ends.dtype == torch.int32 and len(facts.ends) == 64
    assert facts.ends[: len(ends)].tolist() == ends and set(facts.ends[len(ends) :].tolist()) == {12}
    assert facts.max_length == 4 and facts.num_tokens == 11 and not facts.has_branches
    assert facts.counted.index[:5].tolist() == [1, 2, 4, 9, 10] and float(facts.counted.weights.sum()) == 5
    assert batch.to("cpu").facts.num_tokens == 11 and batch.to("cpu").__dict__["facts"].ends is facts.ends
    changed = dataclasses.replace(batch, loss_weights=torch.ones(2, 6), branches=zeros + 1)
    assert float(changed.facts.counted.weights.sum()) == 12 and changed.facts.has_branches
