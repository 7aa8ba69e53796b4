"""Media of a batch, flat: some rows of it, other devices, and the weights of noised tokens."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.batch import PackedBatch, collate, weight_of_noised
from data_pipelines.media_batch import PackedMedia
from data_pipelines.outline import Outline, Rendered, Run, RunMedia, media_run
from tests.data_pipelines.test_stream import equal
from tests.oracles.tiny import tiny_space

SPACE = tiny_space()
LENGTH = 30


def sequence(*media: tuple[str, str, int, int], text: int = 2, weight: float = 1.0) -> Rendered:
    """Text, then images by name, state, rows and columns; their values count up from the size of the sequence."""
    runs = [Run(np.arange(7, 7 + text), weight)]
    for number, (name, state, rows, columns) in enumerate(media):
        values = np.arange(rows * columns * 3).reshape(rows, columns, 3) + 100 * number
        dtype = np.float16 if name == "latents" else np.uint8
        given = RunMedia(name, values.astype(dtype), state)  # pyright: ignore[reportArgumentType]
        runs.append(media_run(given, SPACE, 0.0))
    return Outline((), (tuple(runs),)).build()


DRAWING = sequence(("latents", "noised", 2, 3))
EDIT = sequence(("latents", "clean", 1, 2), ("patches", "clean", 2, 1), ("latents", "noised", 1, 2))
SEEN = sequence(("patches", "clean", 1, 3), text=3)
TEXT = sequence(text=5)
KINDS = [DRAWING, EDIT, SEEN, TEXT]
ROWS = [[DRAWING, SEEN], [TEXT], [EDIT, TEXT], [], [SEEN, SEEN]]


def test_media_lie_one_after_the_other_in_the_order_of_the_tokens() -> None:
    batch = collate(ROWS, LENGTH, SPACE)
    latents, patches = batch.media["latents"], batch.media["patches"]
    assert latents.grids == ((2, 3), (1, 2), (1, 2)) and patches.grids == ((1, 3), (2, 1), (1, 3), (1, 3))
    assert latents.index.tolist() == [*range(3, 9), 2 * LENGTH + 3, 2 * LENGTH + 4, 2 * LENGTH + 11, 2 * LENGTH + 12]
    assert latents.row_col.tolist()[:6] == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert latents.spans.tolist() == [-1] * 6 + [1, 1] + [-3, -3] and patches.spans.tolist()[:3] == [2] * 3
    assert latents.values.dtype == torch.float32 and patches.values.dtype == torch.uint8
    assert latents.values[-1].tolist() == [203, 204, 205] and patches.values[3].tolist() == [100, 101, 102]
    for packed in batch.media.values():
        assert batch.spans is not None and torch.equal(batch.spans.flatten()[packed.index], packed.spans)
        assert (batch.tokens.flatten()[packed.index] == SPACE.specials.pad).all()


@given(
    rows=st.lists(st.lists(st.sampled_from(KINDS), max_size=2), min_size=1, max_size=4),
    start=st.integers(-1, 5),
    stop=st.integers(0, 6),
)
def test_some_rows_of_a_batch_are_the_batch_of_these_rows(rows: list[list[Rendered]], start: int, stop: int) -> None:
    chosen = rows[start:stop]
    if not chosen:
        return
    part = collate(rows, LENGTH, SPACE, noised_weight=0.5).rows(start, stop)
    alone = collate(chosen, LENGTH, SPACE, noised_weight=0.5)
    if alone.spans is None and part.spans is not None:
        assert not part.spans.any() and part.media == {}, "spans of the whole batch remain"
        return
    assert equal(part, alone)
    assert all(len(packed.index) > 0 for packed in part.media.values())


def test_every_tensor_goes_to_another_device_and_through_a_pickle() -> None:
    batch = collate(ROWS, LENGTH, SPACE)
    meta = batch.to("meta")
    for packed in meta.media.values():
        parts = (packed.index, packed.values, packed.row_col, packed.spans, packed.weights)
        assert {tensor.device.type for tensor in parts} == {"meta"}
    assert meta.spans is not None and meta.spans.device.type == "meta"
    assert {name: packed.grids for name, packed in meta.media.items()} == {n: p.grids for n, p in batch.media.items()}
    assert equal(pickle.loads(pickle.dumps(batch)), batch), "as a loader process sends it"


def test_memory_is_pinned_tensor_by_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU nothing can be pinned, so what would be is counted."""
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor)
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    batch = collate(ROWS, LENGTH, SPACE)
    assert equal(batch.pin_memory(), batch)
    assert len(pinned) == 8 + 2 * 5 + 3, "(B, T) fields with spans, five of each kind of media, and the facts"


def noised(batch: PackedBatch) -> list[PackedMedia]:
    return [packed for packed in batch.media.values() if (packed.weights > 0).any()]


def test_noised_tokens_weigh_together_what_the_tokens_of_the_step_do() -> None:
    batch = collate(ROWS, LENGTH, SPACE)
    (latents,) = noised(batch)
    assert latents is batch.media["latents"] and torch.equal(latents.weights > 0, latents.spans < 0)
    assert float(latents.weights.sum()) == pytest.approx(float(batch.loss_weights.sum()))
    assert len(latents.weights[latents.weights > 0].unique()) == 1
    (given,) = noised(collate(ROWS, LENGTH, SPACE, noised_weight=0.25))
    assert set(given.weights.tolist()) == {0.0, 0.25}


@pytest.mark.parametrize(
    ("tokens", "count", "weight"), [(6.0, 3, 2.0), (0.0, 4, 2.5e-9), (5.0, 0, 5.0), (1e-12, 1, 1e-8)]
)
def test_a_step_without_weight_or_without_noise_has_weights_all_the_same(
    tokens: float, count: int, weight: float
) -> None:
    assert weight_of_noised(tokens, count) == pytest.approx(weight)


def test_a_batch_without_media_has_an_empty_mapping_and_no_spans() -> None:
    batch = collate([[TEXT], [TEXT]], LENGTH, SPACE)
    assert batch.media == {} and batch.spans is None
    assert batch.rows(0, 1).media == {} and batch.to("cpu").media == {}
