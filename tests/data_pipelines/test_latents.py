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

from data_pipelines.batch import PackedBatch, collate
from data_pipelines.forms import LatentTemplateConfig
from data_pipelines.shards.format import DamagedShard, TokenDocument, TokenSegment
from data_pipelines.templates import TemplateConfig, outline, render
from tests.oracles import token_documents
from tests.oracles.tiny import tiny_model
from tests.oracles.token_documents import BOI, BOS, CODES, EOI, EOS, NULL, PAD, SEP, SPACE, document, read, text, write
from tokenizers_vq.media import LATENTS
from unimodal.generation.batch_media import media_tokens
from unimodal.model.config import FlowConfig
from unimodal.model.masks import dense_mask

KEPT = LatentTemplateConfig(drop_clean=0.0, drop_codes=0.0, whole=0.0)
FORMATTED = TemplateConfig(
    image_first=0.0, drop_prompt=0.0, drop_image=0.0, shown_image_weight=0.2, drawn="latents", latents=KEPT
)


def latents(seed: int, rows: int = 2, columns: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns, 5)).astype(np.float16)


def image(role: str, seed: int = 0) -> TokenSegment:
    return token_documents.image(role, latents=latents(seed))


COPY = [BOI, *[PAD] * 6, EOI]
PICTURE = [BOI, *CODES, EOI]


def test_shards_give_latents_back_image_by_image(tmp_path: Path) -> None:
    edit = document(image("image", 1), text("request", 8), image("answer", 2), layout="dialogue", task="edit")
    plain = document(text("text", 9), layout="interleaved")
    found = read(write(tmp_path, edit, plain))
    assert [list(s.media) for one in found for s in one.segments] == [["latents"], [], ["latents"], []]
    for segment, seed in ((found[0].segments[0], 1), (found[0].segments[2], 2)):
        assert segment.media["latents"].dtype == np.float16
        assert np.array_equal(segment.media["latents"], latents(seed))


@pytest.mark.parametrize(
    ("values", "grid", "reason"),
    [
        (latents(0).reshape(-1, 5), [2, 4], "2x4 latents, but only 6 are left"),
        (latents(0).reshape(-1, 5), [1, 3], "do not cover its ids and latents"),
        (latents(0).reshape(-1, 5), [2, -3], "not rows and columns"),
        (latents(0).reshape(-1, 5), "2x3", "not rows and columns"),
        (latents(0).reshape(-1, 5).astype(np.float32), [2, 3], "latents are float16 in rows of 5, not float32"),
        (latents(0).reshape(-1, 3), [2, 5], "latents are float16 in rows of 5"),
        (latents(0), [2, 3], r"latents are float16 in rows of 5, not float16 of shape \(2, 3, 5\)"),
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
    one = document(token_documents.image("image", latents=turned), text("caption", 8))
    found = read(write(tmp_path, one))[0].segments[0].media["latents"]
    assert np.array_equal(found, latents(1))


def test_an_array_by_columns_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from data_pipelines.shards import writer

    def by_columns(array: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, np.asfortranarray(array))
        return buffer.getvalue()

    monkeypatch.setattr(writer, "_npy", by_columns)
    with pytest.raises(DamagedShard, match="column by column"):
        read(write(tmp_path, document(image("image"), text("caption", 8))))


def formatted(
    one: TokenDocument, config: TemplateConfig = FORMATTED
) -> tuple[list[int], list[int], list[int], list[float]]:
    rendered = render(one, SPACE, config, Random(0))
    assert rendered.spans is not None
    return rendered.ids.tolist(), rendered.spans.tolist(), rendered.positions.tolist(), rendered.weights.tolist()


def test_a_drawing_is_a_noised_copy_and_nothing_can_say_what_follows() -> None:
    ids, spans, positions, weights = formatted(document(image("image"), text("caption", 8, 9)))
    assert ids == [BOS, 8, 9, SEP, *COPY]
    assert spans == [0] * 4 + [-1] * 8
    assert positions == [0, 1, 2, 3] + [4] * 8
    assert weights == [0, 0, 0, 0, 1] + [0] * 7


def test_an_edit_shows_a_clean_copy_and_codes_and_draws_a_noised_one() -> None:
    one = document(image("image", 1), text("request", 8), image("answer", 2), layout="dialogue", task="edit")
    ids, spans, positions, weights = formatted(one)
    assert ids == [BOS, *COPY, *PICTURE, 8, SEP, *COPY]
    assert spans == [0] + [1] * 8 + [0] * 8 + [-2] * 8
    assert positions == [0, *[1] * 8, *range(2, 8), 8, 9, *[10] * 8]
    assert [i for i, w in enumerate(weights) if w] == [*range(9, 15), 17]
    rendered = render(one, SPACE, FORMATTED, Random(0))
    placed = [
        (start, media.state, np.array_equal(media.values, latents(seed)))
        for (start, media), seed in zip(rendered.media, (1, 2), strict=True)
    ]
    assert placed == [(2, "clean", True), (18, "noised", True)]


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
    ids, spans, positions, _ = formatted(one)
    first = [BOS, 8, SEP, *COPY, *COPY, *PICTURE, EOS]
    second = [9, SEP, *COPY, *COPY, *PICTURE, EOS]
    assert ids == [*first, *second, 8, SEP, 9, EOS]
    assert spans[3:11] == [-1] * 8 and spans[11:19] == [2] * 8
    assert positions[3:19] == [3] * 16 and positions[19] == 4
    noised = len(first) + 2
    assert spans[noised : noised + 8] == [-3] * 8 and positions[noised + 8] == positions[noised]


def test_in_the_longer_form_a_drawing_is_seen_and_ended_and_a_question_has_the_clean_copy() -> None:
    """What decoding leaves in the context, whatever the model goes on with."""
    whole = dataclasses.replace(FORMATTED, latents=dataclasses.replace(KEPT, whole=1.0))
    ids, spans, _, weights = formatted(document(image("image"), text("caption", 8)), whole)
    assert ids == [BOS, 8, SEP, *COPY, *COPY, *PICTURE, EOS]
    assert spans[3:11] == [-1] * 8 and spans[11:19] == [2] * 8 and weights[-1] == 1
    asked = document(image("image"), text("question", 8), text("answer", 9))
    ids, spans, _, _ = formatted(asked, dataclasses.replace(whole, image_first=1.0))
    assert ids == [BOS, *COPY, *PICTURE, 8, SEP, 9, EOS] and spans[1:9] == [1] * 8
    edit = document(image("image", 1), text("request", 8), image("answer", 2), layout="dialogue", task="edit")
    assert formatted(edit, whole)[0] == [BOS, *COPY, *PICTURE, 8, SEP, *COPY, *COPY, *PICTURE, EOS]


def test_what_follows_a_drawn_picture_sees_the_same_whether_it_is_text_or_another_picture() -> None:
    for then in (text("answer", 9), image("answer")):
        one = document(text("request", 8), image("answer"), text("request", 9), then, layout="dialogue")
        assert formatted(one)[0][: 4 + 8 + 8 + 6] == [BOS, 8, SEP, *COPY, *COPY, *PICTURE, EOS]


def test_conditions_of_edits_are_dropped_and_never_both() -> None:
    one = document(image("image", 1), text("request", 8), image("answer", 2), layout="dialogue", task="edit")
    config = dataclasses.replace(FORMATTED, latents=LatentTemplateConfig(drop_clean=0.3, drop_codes=0.5, whole=0.0))
    forms = {tuple(render(one, SPACE, config, Random(seed)).ids.tolist()) for seed in range(60)}
    both, clean, codes = [*COPY, *PICTURE], COPY, PICTURE
    assert forms == {(BOS, *shown, 8, SEP, *COPY) for shown in map(tuple, (both, clean, codes))}
    dropped = dataclasses.replace(FORMATTED, drop_image=1.0)
    assert formatted(one, dropped)[0] == [BOS, NULL, SEP, *COPY]
    dropped = dataclasses.replace(FORMATTED, drop_prompt=1.0)
    assert formatted(one, dropped)[0] == [BOS, NULL, *COPY, *PICTURE, SEP, *COPY]


def test_a_question_is_formatted_as_without_latents() -> None:
    one = document(image("image"), text("question", 8), text("answer", 9))
    shown = dataclasses.replace(FORMATTED, image_first=1.0)
    with_latents = render(one, SPACE, shown, Random(0))
    without = render(one, SPACE, dataclasses.replace(shown, drawn="codes"), Random(0))
    assert with_latents.spans is None and with_latents.ids.tolist() == without.ids.tolist()
    assert with_latents.positions.tolist() == without.positions.tolist()


def test_shards_without_latents_are_refused_in_words() -> None:
    one = document(TokenSegment(kind="image", role="image", ids=np.array(CODES)), text("caption", 8))
    with pytest.raises(ValueError, match="tokenize with --autoencoder"):
        render(one, SPACE, FORMATTED, Random(0))


def test_a_batch_places_every_latent_and_weighs_noised_ones_as_much_as_its_tokens() -> None:
    edit = document(image("image", 1), text("request", 8), image("answer", 2), layout="dialogue", task="edit")
    drawing = document(image("image", 3), text("caption", 8))
    rows = [[render(drawing, SPACE, FORMATTED, Random(0)), render(edit, SPACE, FORMATTED, Random(0))], []]
    batch = collate(rows, 60, SPACE)
    packed = batch.media["latents"]
    starts = {3: len(rows[0][0].ids) - 7, 1: len(rows[0][0].ids) + 2, 2: len(rows[0][0].ids) + 18}
    assert packed.grids == ((2, 3),) * 3
    for number, (seed, start) in enumerate(starts.items()):
        own = slice(6 * number, 6 * number + 6)
        assert packed.index[own].tolist() == list(range(start, start + 6))
        assert torch.equal(packed.values[own], torch.from_numpy(latents(seed)).float().reshape(6, 5))
        assert packed.row_col[own].tolist() == [[r, c] for r in range(2) for c in range(3)]
    assert len(packed.index) == 18
    assert batch.spans is not None and batch.spans[0].unique().tolist() == [-3, -1, 0, 2]
    assert torch.equal(packed.spans, batch.spans.flatten()[packed.index])
    assert torch.equal(packed.weights > 0, packed.spans < 0) and int((packed.weights > 0).sum()) == 12
    torch.testing.assert_close(packed.weights.sum(), batch.loss_weights.sum())
    assert torch.equal(batch.to("cpu").media["latents"].values, packed.values)
    assert batch.rows(1, 2).media == {}


def test_an_outline_knows_its_weight_and_its_noised_latents_before_it_is_built() -> None:
    edit = document(image("image", 1), text("request", 8), image("answer", 2), layout="dialogue", task="edit")
    question = document(image("image"), text("question", 8), text("answer", 9), text("question", 9), text("answer", 8))
    shown = dataclasses.replace(FORMATTED, image_first=1.0, prompt_weight=0.5)
    for one, config in (
        (edit, FORMATTED),
        (question, shown),
        (document(image("image"), text("caption", 8)), FORMATTED),
    ):
        planned = outline(one, SPACE, config, Random(0))
        batch = collate([[planned.build()]], 80, SPACE)
        assert planned.weight == pytest.approx(float(batch.loss_weights.sum()))
        noised = sum(int((packed.weights > 0).sum()) for packed in batch.media.values())
        assert planned.num_noised == noised


def test_documents_packed_in_a_row_have_the_outputs_of_documents_alone() -> None:
    """Through the whole model, latents and all: no document sees another, and positions are its own."""
    config = FlowConfig(latent_dim=5, grid_size=3, time_channels=8)
    model = tiny_model(SPACE.vocab_size, flow=config, mixture=True)
    edit = document(image("image", 1), text("request", 8), image("answer", 2), layout="dialogue", task="edit")
    question = document(image("image"), text("question", 8), text("answer", 9), text("question", 9), text("answer", 8))
    asked = dataclasses.replace(FORMATTED, image_first=1.0)
    drawing = document(image("image", 3), text("caption", 8))
    chosen = ((edit, FORMATTED), (question, asked), (drawing, FORMATTED), (edit, FORMATTED))
    sequences = [render(one, SPACE, config, Random(0)) for one, config in chosen]

    def features(batch: PackedBatch) -> torch.Tensor:
        media = {}
        for packed in batch.media.values():
            times = torch.where(packed.spans < 0, 0.7, 0.0).double()
            media[LATENTS] = media_tokens(packed)._replace(values=packed.values.double(), times=times)
        mask = dense_mask(batch.documents, batch.branches, batch.spans)
        return model(batch.tokens, batch.positions, mask, media=media)[0]

    together = features(collate([sequences], sum(map(len, sequences)) + 3, SPACE))
    start = 0
    for sequence in sequences:
        alone = features(collate([[sequence]], len(sequence), SPACE))
        torch.testing.assert_close(together[start : start + len(sequence)], alone, rtol=1e-11, atol=1e-11)
        start += len(sequence)
