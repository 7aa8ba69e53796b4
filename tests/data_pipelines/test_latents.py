"""Latents beside ids: shards that hold them, templates that tell them, batches that place them."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

from data_pipelines.batch import PackedBatch, PackedLatents, collate
from data_pipelines.shards.format import DamagedShard, TokenDocument, TokenSegment
from data_pipelines.templates import LatentTemplateConfig, TemplateConfig, outline, render
from tests.oracles import token_documents
from tests.oracles.tiny import tiny_model
from tests.oracles.token_documents import BOI, BOS, CODES, EOI, EOS, NULL, PAD, SEP, SPACE, document, read, text, write
from unimodal.generation.batch_media import media_of
from unimodal.model.config import FlowConfig
from unimodal.model.masks import dense_mask
from unimodal.model.model import LATENTS

KEPT = LatentTemplateConfig(drop_clean=0.0, drop_codes=0.0, whole=0.0)
TOLD = TemplateConfig(image_first=0.0, drop_prompt=0.0, drop_image=0.0, shown_image_weight=0.2, latents=KEPT)


def latents(seed: int, rows: int = 2, columns: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns, 5)).astype(np.float16)


def image(role: str, seed: int = 0) -> TokenSegment:
    return token_documents.image(role, latents(seed))


COPY = [BOI, *[PAD] * 6, EOI]
PICTURE = [BOI, *CODES, EOI]


def test_shards_give_latents_back_image_by_image(tmp_path: Path) -> None:
    edit = document(image("image", 1), text("request", 8), image("answer", 2), layout="dialogue", task="edit")
    plain = document(text("text", 9), layout="interleaved")
    found = read(write(tmp_path, edit, plain))
    assert [s.latents is not None for one in found for s in one.segments] == [True, False, True, False]
    for segment, seed in ((found[0].segments[0], 1), (found[0].segments[2], 2)):
        assert segment.latents is not None and segment.latents.dtype == np.float16
        assert np.array_equal(segment.latents, latents(seed))


@pytest.mark.parametrize(
    ("values", "grid", "reason"),
    [
        (latents(0).reshape(-1, 5), [2, 4], "2x4 latents, but only 6 are left"),
        (latents(0).reshape(-1, 5), [1, 3], "do not cover its ids, latents and pixels"),
        (latents(0).reshape(-1, 5), [2, -3], "not rows and columns"),
        (latents(0).reshape(-1, 5), "2x3", "not rows and columns"),
        (latents(0).reshape(-1, 5).astype(np.float32), [2, 3], "latents are float16"),
        (latents(0), [2, 3], "latents are float16 in two dimensions"),
        (np.full((6, 5), np.nan, np.float16), [2, 3], "not all numbers"),
    ],
)
def test_latents_that_do_not_fit_are_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: np.ndarray, grid: object, reason: str
) -> None:
    from data_pipelines.shards import writer

    real = writer._npy
    monkeypatch.setattr(writer, "_npy", lambda array: real(values if array.dtype == np.float16 else array))
    describe = writer._describe

    def described(one: TokenDocument) -> dict:
        changed = json.loads(json.dumps(describe(one)))
        changed["segments"][0]["latents"] = grid
        return changed

    monkeypatch.setattr(writer, "_describe", described)
    folder = write(tmp_path, document(image("image"), text("caption", 8)))
    with pytest.raises(DamagedShard, match=reason):
        read(folder)


def test_latents_are_written_row_by_row_however_they_lie_in_memory(tmp_path: Path) -> None:
    """An autoencoder gives (C, R, K): turned round, that is an array by columns."""
    turned = np.ascontiguousarray(latents(1).transpose(2, 0, 1)).transpose(1, 2, 0)
    assert not turned.flags.c_contiguous
    found = (
        read(write(tmp_path, document(token_documents.image("image", turned), text("caption", 8))))[0]
        .segments[0]
        .latents
    )
    assert found is not None and np.array_equal(found, latents(1))


def test_an_array_by_columns_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from data_pipelines.shards import writer

    def by_columns(array: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, np.asfortranarray(array))
        return buffer.getvalue()

    monkeypatch.setattr(writer, "_npy", by_columns)
    with pytest.raises(DamagedShard, match="column by column"):
        read(write(tmp_path, document(image("image"), text("caption", 8))))


def told(one: TokenDocument, config: TemplateConfig = TOLD) -> tuple[list[int], list[int], list[int], list[float]]:
    rendered = render(one, SPACE, config, Random(0))
    assert rendered.spans is not None
    return rendered.ids.tolist(), rendered.spans.tolist(), rendered.positions.tolist(), rendered.weights.tolist()


def test_a_drawing_is_a_noised_copy_and_nothing_can_say_what_follows() -> None:
    ids, spans, positions, weights = told(document(image("image"), text("caption", 8, 9)))
    assert ids == [BOS, 8, 9, SEP, *COPY]
    assert spans == [0] * 4 + [-1] * 8
    assert positions == [0, 1, 2, 3] + [4] * 8
    assert weights == [0, 0, 0, 0, 1] + [0] * 7


def test_an_edit_shows_a_clean_copy_and_codes_and_draws_a_noised_one() -> None:
    one = document(image("image", 1), text("request", 8), image("answer", 2), layout="dialogue", task="edit")
    ids, spans, positions, weights = told(one)
    assert ids == [BOS, *COPY, *PICTURE, 8, SEP, *COPY]
    assert spans == [0] + [1] * 8 + [0] * 8 + [-2] * 8
    assert positions == [0, *[1] * 8, *range(2, 8), 8, 9, *[10] * 8]
    assert [i for i, w in enumerate(weights) if w] == [*range(9, 15), 17]
    rendered = render(one, SPACE, TOLD, Random(0))
    assert [
        (start, np.array_equal(own, latents(seed))) for (start, own), seed in zip(rendered.copies, (1, 2), strict=True)
    ] == [
        (2, True),
        (18, True),
    ]


def test_a_dialogue_goes_on_from_a_clean_copy_at_the_position_of_the_noised_one() -> None:
    one = document(
        text("request", 8),
        image("answer"),
        text("request", 9),
        image("answer"),
        text("request", 8),
        text("answer", 9),
        layout="dialogue",
    )
    ids, spans, positions, _ = told(one)
    first = [BOS, 8, SEP, *COPY, *COPY, *PICTURE, EOS]
    second = [9, SEP, *COPY, *COPY, *PICTURE, EOS]
    assert ids == [*first, *second, 8, SEP, 9, EOS]
    assert spans[3:11] == [-1] * 8 and spans[11:19] == [2] * 8
    assert positions[3:19] == [3] * 16 and positions[19] == 4
    noised = len(first) + 2
    assert spans[noised : noised + 8] == [-3] * 8 and positions[noised + 8] == positions[noised]


def test_in_the_longer_form_a_drawing_is_seen_and_ended_and_a_question_has_the_clean_copy() -> None:
    """What decoding leaves in the context, whatever the model goes on with."""
    whole = dataclasses.replace(TOLD, latents=dataclasses.replace(KEPT, whole=1.0))
    ids, spans, _, weights = told(document(image("image"), text("caption", 8)), whole)
    assert ids == [BOS, 8, SEP, *COPY, *COPY, *PICTURE, EOS]
    assert spans[3:11] == [-1] * 8 and spans[11:19] == [2] * 8 and weights[-1] == 1
    asked = document(image("image"), text("question", 8), text("answer", 9))
    ids, spans, _, _ = told(asked, dataclasses.replace(whole, image_first=1.0))
    assert ids == [BOS, *COPY, *PICTURE, 8, SEP, 9, EOS] and spans[1:9] == [1] * 8
    edit = document(image("image", 1), text("request", 8), image("answer", 2), layout="dialogue", task="edit")
    assert told(edit, whole)[0] == [BOS, *COPY, *PICTURE, 8, SEP, *COPY, *COPY, *PICTURE, EOS]


def test_what_follows_a_drawn_picture_sees_the_same_whether_it_is_text_or_another_picture() -> None:
    for then in (text("answer", 9), image("answer")):
        one = document(text("request", 8), image("answer"), text("request", 9), then, layout="dialogue")
        assert told(one)[0][: 4 + 8 + 8 + 6] == [BOS, 8, SEP, *COPY, *COPY, *PICTURE, EOS]


def test_conditions_of_edits_are_dropped_and_never_both() -> None:
    one = document(image("image", 1), text("request", 8), image("answer", 2), layout="dialogue", task="edit")
    config = dataclasses.replace(TOLD, latents=LatentTemplateConfig(drop_clean=0.3, drop_codes=0.5, whole=0.0))
    forms = {tuple(render(one, SPACE, config, Random(seed)).ids.tolist()) for seed in range(60)}
    both, clean, codes = [*COPY, *PICTURE], COPY, PICTURE
    assert forms == {(BOS, *shown, 8, SEP, *COPY) for shown in map(tuple, (both, clean, codes))}
    dropped = dataclasses.replace(TOLD, drop_image=1.0)
    assert told(one, dropped)[0] == [BOS, NULL, SEP, *COPY]
    dropped = dataclasses.replace(TOLD, drop_prompt=1.0)
    assert told(one, dropped)[0] == [BOS, NULL, *COPY, *PICTURE, SEP, *COPY]


def test_a_question_is_told_as_without_latents() -> None:
    one = document(image("image"), text("question", 8), text("answer", 9))
    shown = dataclasses.replace(TOLD, image_first=1.0)
    with_latents = render(one, SPACE, shown, Random(0))
    without = render(one, SPACE, dataclasses.replace(shown, latents=None), Random(0))
    assert with_latents.spans is None and with_latents.ids.tolist() == without.ids.tolist()
    assert with_latents.positions.tolist() == without.positions.tolist()


def test_shards_without_latents_are_refused_in_words() -> None:
    one = document(TokenSegment(kind="image", role="image", ids=np.array(CODES)), text("caption", 8))
    with pytest.raises(ValueError, match="tokenize with --autoencoder"):
        render(one, SPACE, TOLD, Random(0))


def test_a_batch_places_every_latent_and_weighs_noised_ones_as_much_as_its_tokens() -> None:
    edit = document(image("image", 1), text("request", 8), image("answer", 2), layout="dialogue", task="edit")
    drawing = document(image("image", 3), text("caption", 8))
    rows = [[render(drawing, SPACE, TOLD, Random(0)), render(edit, SPACE, TOLD, Random(0))], []]
    batch = collate(rows, 60, SPACE)
    packed = batch.latents
    assert isinstance(packed, PackedLatents)
    starts = {3: len(rows[0][0].ids) - 7, 1: len(rows[0][0].ids) + 2, 2: len(rows[0][0].ids) + 18}
    for seed, start in starts.items():
        own = torch.from_numpy(latents(seed)).float().reshape(6, 5)
        assert torch.equal(packed.values[0, start : start + 6], own)
        assert packed.cells[0, start : start + 6].tolist() == [[r, c] for r in range(2) for c in range(3)]
    assert int((packed.cells[..., 0] >= 0).sum()) == 18
    assert batch.spans is not None and batch.spans[0].unique().tolist() == [-3, -1, 0, 2]
    assert int((packed.weights > 0).sum()) == 12
    torch.testing.assert_close(packed.weights.sum(), batch.loss_weights.sum())
    assert torch.equal(batch.to("cpu").latents.values, packed.values)  # pyright: ignore[reportOptionalMemberAccess]
    assert batch.rows(1, 2).latents.weights.sum() == 0  # pyright: ignore[reportOptionalMemberAccess]


def test_an_outline_knows_its_weight_and_its_noised_latents_before_it_is_built() -> None:
    edit = document(image("image", 1), text("request", 8), image("answer", 2), layout="dialogue", task="edit")
    question = document(image("image"), text("question", 8), text("answer", 9), text("question", 9), text("answer", 8))
    shown = dataclasses.replace(TOLD, image_first=1.0, prompt_weight=0.5)
    for one, config in ((edit, TOLD), (question, shown), (document(image("image"), text("caption", 8)), TOLD)):
        planned = outline(one, SPACE, config, Random(0))
        batch = collate([[planned.build()]], 80, SPACE)
        assert planned.weight == pytest.approx(float(batch.loss_weights.sum()))
        noised = 0 if batch.latents is None else int((batch.latents.weights > 0).sum())
        assert planned.noised_latents == noised


def test_documents_packed_in_a_row_have_the_outputs_of_documents_alone() -> None:
    """Through the whole model, latents and all: no document sees another, and positions are its own."""
    config = FlowConfig(latent_dim=5, grid_size=3, time_channels=8)
    model = tiny_model(SPACE.vocab_size, flow=config, mixture=True)
    edit = document(image("image", 1), text("request", 8), image("answer", 2), layout="dialogue", task="edit")
    question = document(image("image"), text("question", 8), text("answer", 9), text("question", 9), text("answer", 8))
    asked = dataclasses.replace(TOLD, image_first=1.0)
    drawing = document(image("image", 3), text("caption", 8))
    chosen = ((edit, TOLD), (question, asked), (drawing, TOLD), (edit, TOLD))
    sequences = [render(one, SPACE, told, Random(0)) for one, told in chosen]

    def features(batch: PackedBatch) -> torch.Tensor:
        media = media_of(batch)
        if (clean := media.get(LATENTS)) and batch.spans is not None:
            times = torch.where(batch.spans.flatten()[clean.index] < 0, 0.7, 0.0).double()
            media[LATENTS] = clean._replace(values=clean.values.double(), times=times)
        mask = dense_mask(batch.documents, batch.branches, batch.spans)
        return model(batch.tokens, batch.positions, mask, media=media)[0]

    together = features(collate([sequences], sum(map(len, sequences)) + 3, SPACE))
    start = 0
    for sequence in sequences:
        alone = features(collate([[sequence]], len(sequence), SPACE))
        torch.testing.assert_close(together[start : start + len(sequence)], alone, rtol=1e-11, atol=1e-11)
        start += len(sequence)
