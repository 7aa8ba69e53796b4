"""Pixels beside ids for a ViT: pictures in their own shape, shards that hold them, templates and batches."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipelines.batch import collate
from data_pipelines.datamodule import TokenDataModule
from data_pipelines.documents import Document, ImageSegment
from data_pipelines.encoding import Encoder, ReadDocument
from data_pipelines.forms import LatentTemplateConfig
from data_pipelines.images import ImagePolicy, cut_patches, join_patches, resize_to_patches
from data_pipelines.media_makers import PatchesMaker
from data_pipelines.planning import StreamConfig
from data_pipelines.shards.format import DamagedShard, TokenDocument, TokenSegment
from data_pipelines.shards.reader import open_manifest, read_all
from data_pipelines.templates import TemplateConfig, render
from data_pipelines.tokenize import make_token_space
from tests.oracles import token_documents
from tests.oracles.tiny import tiny_autoencoder, tiny_image_tokenizer, tiny_picture, tiny_shards, tiny_text_tokenizer
from tests.oracles.token_documents import BOI, BOS, EOI, EOS, PAD, SEP, SPACE, document, read, text, write
from tokenizers_vq.media import MediaSpec, PatchSpec

KEPT = LatentTemplateConfig(drop_clean=0.0, drop_codes=0.0, whole=0.0)
FORMATTED = TemplateConfig(
    image_first=0.0, drop_prompt=0.0, drop_image=0.0, seen="patches", drawn="latents", latents=KEPT
)
LATENT_COPY, PATCH_COPY = [BOI, *[PAD] * 6, EOI], [BOI, *[PAD] * 2, EOI]


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size=(2, 4, 3), dtype=np.uint8)


def image(role: str, seed: int = 0) -> TokenSegment:
    return token_documents.image(
        role, latents=np.full((2, 3, 5), seed, np.float16), patches=cut_patches(pixels(seed), 2)
    )


EDIT = document(image("image", 1), text("request", 8), image("answer", 2), layout="dialogue", task="edit")
QUESTION = document(image("image"), text("question", 8), text("answer", 9))


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((64, 64), (8, 8)),
        ((32, 128), (4, 16)),
        ((30, 61), (4, 8)),
        ((3, 5), (1, 1)),
        ((640, 480), (9, 7)),
        ((2000, 10), (16, 1)),
        ((500, 1000), (6, 10)),
    ],
)
def test_pictures_keep_their_shape_within_the_most_patches(size: tuple[int, int], grid: tuple[int, int]) -> None:
    spec = PatchSpec(size=8, max_patches=64, max_side=16)
    assert spec.grid(*size) == MediaSpec.of_patches(spec).grid(*size) == grid
    resized = resize_to_patches(Image.new("RGB", (size[1], size[0])), spec)
    assert resized.shape == (8 * grid[0], 8 * grid[1], 3)


@pytest.mark.parametrize("seed", range(200))
def test_no_picture_has_too_many_patches_and_shapes_stay_near_their_own(seed: int) -> None:
    random = Random(seed)
    size, max_patches, max_side = random.choice([4, 14, 16]), random.randint(1, 300), random.randint(1, 40)
    height, width = random.randint(1, 3000), random.randint(1, 3000)
    rows, columns = PatchSpec(size=size, max_patches=max_patches, max_side=max_side).grid(height, width)
    assert 1 <= rows <= max_side and 1 <= columns <= max_side and rows * columns <= max_patches
    if rows > 4 and columns > 4:
        assert rows / columns == pytest.approx(height / width, rel=0.35)


def test_a_picture_that_fits_is_not_touched_and_patches_lie_as_a_convolution_reads_them() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8))
    kept = resize_to_patches(picture, PatchSpec(size=2, max_patches=12))
    assert np.array_equal(kept, np.asarray(picture))
    patches = cut_patches(kept, 2)
    assert patches.shape == (3, 4, 12) and np.array_equal(join_patches(patches, 2), kept)
    weight = torch.randn(5, 3, 2, 2)
    plain = torch.from_numpy(kept).permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.conv2d(plain, weight, stride=2)[0].permute(1, 2, 0)
    torch.testing.assert_close(torch.from_numpy(patches).float() @ weight.flatten(1).T, expected, rtol=1e-4, atol=1e-2)


def test_shards_give_patches_back_image_by_image(tmp_path: Path) -> None:
    found = read(write(tmp_path, EDIT, document(text("text", 9), layout="interleaved")))
    assert ["patches" in s.media for one in found for s in one.segments] == [True, False, True, False]
    for segment, seed in ((found[0].segments[0], 1), (found[0].segments[2], 2)):
        assert segment.media["patches"].dtype == np.uint8
        assert np.array_equal(join_patches(segment.media["patches"], 2), pixels(seed))


@pytest.mark.parametrize(
    ("change", "grid", "reason"),
    [
        (lambda rows: rows, [1, 3], "1x3 patches, but only 2 are left"),
        (lambda rows: rows, [1, 1], "do not cover its ids and latents and patches"),
        (lambda rows: rows, [0, 2], "not rows and columns"),
        (lambda rows: rows.reshape(-1), [1, 2], "patches are uint8 in rows of 12"),
        (lambda rows: rows.reshape(-1, 6), [2, 2], "patches are uint8 in rows of 12"),
        (lambda rows: rows.astype(np.float32), [1, 2], "patches are uint8 in rows of 12"),
    ],
)
def test_patches_that_do_not_fit_are_refused_with_the_reason(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[np.ndarray], np.ndarray],
    grid: list[int],
    reason: str,
) -> None:
    from data_pipelines.shards import writer

    real, describe = writer._npy, writer._describe
    monkeypatch.setattr(writer, "_npy", lambda array: real(change(array) if array.dtype == np.uint8 else array))

    def described(one: TokenDocument) -> dict:
        changed = json.loads(json.dumps(describe(one)))
        changed["segments"][0]["patches"] = grid
        return changed

    monkeypatch.setattr(writer, "_describe", described)
    folder = write(tmp_path, document(image("image"), text("caption", 8)))
    with pytest.raises(DamagedShard, match=reason):
        read(folder)


def test_a_vit_sees_the_variant_that_was_made_into_codes() -> None:
    """Of a picture larger than the tokenizer's, mirrored and placed by the same draw."""
    text_tokenizer, codec = tiny_text_tokenizer(), tiny_image_tokenizer()
    space = make_token_space(text_tokenizer, codec)
    encoder = Encoder(
        text=text_tokenizer,
        image=codec,
        space=space,
        policy=ImagePolicy.of(codec, space.layout),
        augmentations=("flip", "place"),
        seed=0,
        media=[PatchesMaker(PatchSpec(size=8, max_patches=16))],
    )
    picture = Image.new("RGB", (32, 32), "white")
    picture.paste("black", (4, 8, 14, 18))
    content = io.BytesIO()
    picture.save(content, "PNG")
    one = Document(key="d", segments=(ImageSegment(source=content.getvalue()),))
    for copy in range(6):
        found = encoder.read((one, copy))
        assert isinstance(found, ReadDocument)
        [read] = found.pictures
        seen = join_patches(read.media["patches"], 8)
        assert seen.shape == (32, 32, 3)
        small = torch.from_numpy(seen).permute(2, 0, 1)[None].float() / 127.5 - 1
        found = torch.nn.functional.avg_pool2d(small, 2)[0]
        assert (found - read.pixels).abs().mean() < 0.05


def test_tokenizing_keeps_pictures_for_a_vit_and_says_so(tmp_path: Path) -> None:
    folder = tiny_shards(tmp_path / "shards", 4, latents=True, patch=4)
    spec = PatchSpec(size=4, max_patches=16, max_side=8)
    assert open_manifest(folder).media["patches"] == MediaSpec.of_patches(spec)
    latents = open_manifest(folder).media["latents"]
    assert latents == tiny_autoencoder().media and latents.grid(16, 16) == (2, 2) and latents.max_side == 2
    _, documents = read_all(folder)
    for index, one in enumerate(documents):
        (shown,) = [segment.media["patches"] for segment in one.segments if segment.kind == "image"]
        assert np.array_equal(join_patches(shown, 4), np.asarray(tiny_picture(index)))
    plain = tiny_shards(tmp_path / "plain", 4)
    assert open_manifest(plain).media == {} and all(s.media == {} for d in read_all(plain)[1] for s in d.segments)


def formatted(
    one: TokenDocument, config: TemplateConfig = FORMATTED
) -> tuple[list[int], list[int], list[int], list[float]]:
    rendered = render(one, SPACE, config, Random(0))
    assert rendered.spans is not None
    return rendered.ids.tolist(), rendered.spans.tolist(), rendered.positions.tolist(), rendered.weights.tolist()


def test_what_is_seen_stands_where_codes_would_at_one_position() -> None:
    ids, spans, positions, weights = formatted(EDIT)
    assert ids == [BOS, *LATENT_COPY, *PATCH_COPY, 8, SEP, *LATENT_COPY]
    assert spans == [0, *[1] * 8, *[2] * 4, 0, 0, *[-3] * 8]
    assert positions == [0, *[1] * 8, *[2] * 4, 3, 4, *[5] * 8]
    assert not any(weights[1:13]), "what is seen is not predicted"
    ids, spans, _, weights = formatted(QUESTION, dataclasses.replace(FORMATTED, image_first=1.0))
    assert ids == [BOS, *PATCH_COPY, 8, SEP, 9, EOS] and spans == [0, *[1] * 4, 0, 0, 0, 0]
    assert weights == [0, 0, 0, 0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize(("drops", "left"), [({"drop_clean": 1.0}, PATCH_COPY), ({"drop_codes": 1.0}, LATENT_COPY)])
def test_either_copy_of_an_edit_can_be_lost(drops: dict[str, float], left: list[int]) -> None:
    config = dataclasses.replace(FORMATTED, latents=dataclasses.replace(KEPT, **drops))
    assert formatted(EDIT, config)[0] == [BOS, *left, 8, SEP, *LATENT_COPY]


def test_shards_without_patches_are_refused_with_the_command() -> None:
    bare = document(*(dataclasses.replace(segment, media={}) for segment in QUESTION.segments))
    with pytest.raises(ValueError, match="tokenize with --patch"):
        render(bare, SPACE, dataclasses.replace(FORMATTED, image_first=1.0), Random(0))
    with pytest.raises(ValueError, match="at least one pixel"):
        TemplateConfig(patch_size=0)


def test_a_batch_places_every_patch_and_numbers_copies_of_both_kinds() -> None:
    asked = dataclasses.replace(FORMATTED, image_first=1.0)
    rows = [[render(QUESTION, SPACE, asked, Random(0)), render(EDIT, SPACE, FORMATTED, Random(0))], []]
    batch = collate(rows, 50, SPACE)
    packed = batch.media["patches"]
    assert batch.spans is not None and packed.values.dtype == torch.uint8
    edit = len(rows[0][0])
    for number, (start, seed) in enumerate(((2, 0), (edit + 10, 1))):
        own = slice(2 * number, 2 * number + 2)
        assert packed.index[own].tolist() == [start, start + 1]
        assert torch.equal(packed.values[own], torch.from_numpy(cut_patches(pixels(seed), 2))[0])
        assert packed.row_col[own].tolist() == [[0, 0], [0, 1]]
    assert len(packed.index) == 4 and packed.grids == ((1, 2), (1, 2)) and not packed.weights.any()
    assert batch.spans[0].unique().tolist() == [-4, 0, 1, 2, 3]
    assert torch.equal(packed.spans, batch.spans.flatten()[packed.index])
    assert torch.equal(batch.to("cpu").media["patches"].values, packed.values)
    assert batch.rows(1, 2).media == {}
    alone = collate([[rows[0][0]]], 10, SPACE)
    assert list(alone.media) == ["patches"] and alone.spans is not None


@pytest.mark.parametrize(("made", "asked", "reason"), [(None, 4, "holds no patches"), (8, 4, "those for patches of 8")])
def test_pixels_of_another_kind_than_asked_for_are_refused(
    tmp_path: Path, made: int | None, asked: int, reason: str
) -> None:
    folder = tiny_shards(tmp_path / "shards", 4, latents=True, patch=made)
    templates = TemplateConfig(seen="patches", drawn="latents", patch_size=asked)
    data = TokenDataModule([str(folder)], StreamConfig(length=64, rows=2), templates)
    with pytest.raises(ValueError, match=reason):
        data.setup("fit")
