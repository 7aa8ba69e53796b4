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

from data_pipelines.batch import PackedPatches, collate
from data_pipelines.datamodule import TokenDataModule
from data_pipelines.documents import Document, ImageSegment
from data_pipelines.encoding import Encoder
from data_pipelines.images import ImagePolicy, PatchPolicy, cut_patches
from data_pipelines.planning import StreamConfig
from data_pipelines.shards.format import DamagedShard, TokenDocument, TokenSegment
from data_pipelines.shards.reader import open_manifest, read_all
from data_pipelines.templates import LatentTemplateConfig, TemplateConfig, render
from data_pipelines.tokenize import make_token_space
from tests.oracles import token_documents
from tests.oracles.tiny import tiny_image_tokenizer, tiny_picture, tiny_shards, tiny_text_tokenizer
from tests.oracles.token_documents import BOI, BOS, EOI, EOS, PAD, SEP, SPACE, document, read, text, write

KEPT = LatentTemplateConfig(drop_clean=0.0, drop_codes=0.0, whole=0.0, vit_patch=2)
TOLD = TemplateConfig(image_first=0.0, drop_prompt=0.0, drop_image=0.0, latents=KEPT)
LATENT_COPY, PATCH_COPY = [BOI, *[PAD] * 6, EOI], [BOI, *[PAD] * 2, EOI]


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size=(2, 4, 3), dtype=np.uint8)


def image(role: str, seed: int = 0) -> TokenSegment:
    return token_documents.image(role, np.full((2, 3, 5), seed, np.float16), pixels(seed))


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
    policy = PatchPolicy(patch=8, most=64, longest=16)
    assert policy.grid(*size) == grid
    assert policy.apply(Image.new("RGB", (size[1], size[0]))).shape == (8 * grid[0], 8 * grid[1], 3)


@pytest.mark.parametrize("seed", range(200))
def test_no_picture_has_too_many_patches_and_shapes_stay_near_their_own(seed: int) -> None:
    random = Random(seed)
    policy = PatchPolicy(patch=random.choice([4, 14, 16]), most=random.randint(1, 300), longest=random.randint(1, 40))
    height, width = random.randint(1, 3000), random.randint(1, 3000)
    rows, columns = policy.grid(height, width)
    assert 1 <= rows <= policy.longest and 1 <= columns <= policy.longest and rows * columns <= policy.most
    if rows > 4 and columns > 4:
        assert rows / columns == pytest.approx(height / width, rel=0.35)


def test_a_picture_that_fits_is_not_touched_and_patches_lie_as_a_convolution_reads_them() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8))
    kept = PatchPolicy(patch=2, most=12).apply(picture)
    assert np.array_equal(kept, np.asarray(picture))
    patches = cut_patches(kept, 2)
    assert patches.shape == (3, 4, 12)
    weight = torch.randn(5, 3, 2, 2)
    plain = torch.from_numpy(kept).permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.conv2d(plain, weight, stride=2)[0].permute(1, 2, 0)
    torch.testing.assert_close(torch.from_numpy(patches).float() @ weight.flatten(1).T, expected, rtol=1e-4, atol=1e-2)


def test_shards_give_pixels_back_image_by_image(tmp_path: Path) -> None:
    found = read(write(tmp_path, EDIT, document(text("text", 9), layout="interleaved")))
    assert [s.pixels is not None for one in found for s in one.segments] == [True, False, True, False]
    for segment, seed in ((found[0].segments[0], 1), (found[0].segments[2], 2)):
        assert segment.pixels is not None and segment.pixels.dtype == np.uint8
        assert np.array_equal(segment.pixels, pixels(seed))


@pytest.mark.parametrize(
    ("change", "grid", "reason"),
    [
        (lambda rows: rows, [2, 5], "2x5 pixels, but only 8 are left"),
        (lambda rows: rows, [1, 4], "do not cover its ids, latents and pixels"),
        (lambda rows: rows, [0, 4], "not rows and columns"),
        (lambda rows: rows.reshape(-1), [2, 4], "pixels are uint8 in rows of three"),
        (lambda rows: rows.astype(np.float32), [2, 4], "pixels are uint8 in rows of three"),
    ],
)
def test_pixels_that_do_not_fit_are_refused_with_the_reason(
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
        changed["segments"][0]["pixels"] = grid
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
        patches=PatchPolicy(patch=8, most=16),
    )
    picture = Image.new("RGB", (32, 32), "white")
    picture.paste("black", (4, 8, 14, 18))
    content = io.BytesIO()
    picture.save(content, "PNG")
    one = Document(key="d", segments=(ImageSegment(source=content.getvalue()),))
    for copy in range(6):
        (read,) = encoder.read((one, copy))  # type: ignore[misc]
        assert read.seen is not None and read.seen.shape == (32, 32, 3)
        small = torch.from_numpy(read.seen.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        found = torch.nn.functional.avg_pool2d(small, 2)[0]
        assert (found - read.pixels).abs().mean() < 0.05


def test_tokenizing_keeps_pictures_for_a_vit_and_says_so(tmp_path: Path) -> None:
    folder = tiny_shards(tmp_path / "shards", 4, latents=True, patch=4)
    assert open_manifest(folder).patches == {"patch": 4, "most": 16, "longest": 8}
    _, documents = read_all(folder)
    for index, one in enumerate(documents):
        (shown,) = [segment.pixels for segment in one.segments if segment.kind == "image"]
        assert shown is not None and np.array_equal(shown, np.asarray(tiny_picture(index)))
    plain = tiny_shards(tmp_path / "plain", 4)
    assert open_manifest(plain).patches is None and all(
        s.pixels is None for d in read_all(plain)[1] for s in d.segments
    )


def told(one: TokenDocument, config: TemplateConfig = TOLD) -> tuple[list[int], list[int], list[int], list[float]]:
    rendered = render(one, SPACE, config, Random(0))
    assert rendered.spans is not None
    return rendered.ids.tolist(), rendered.spans.tolist(), rendered.positions.tolist(), rendered.weights.tolist()


def test_what_is_seen_stands_where_codes_would_at_one_position() -> None:
    ids, spans, positions, weights = told(EDIT)
    assert ids == [BOS, *LATENT_COPY, *PATCH_COPY, 8, SEP, *LATENT_COPY]
    assert spans == [0, *[1] * 8, *[2] * 4, 0, 0, *[-3] * 8]
    assert positions == [0, *[1] * 8, *[2] * 4, 3, 4, *[5] * 8]
    assert not any(weights[1:13]), "what is seen is not predicted"
    ids, spans, _, weights = told(QUESTION, dataclasses.replace(TOLD, image_first=1.0))
    assert ids == [BOS, *PATCH_COPY, 8, SEP, 9, EOS] and spans == [0, *[1] * 4, 0, 0, 0, 0]
    assert weights == [0, 0, 0, 0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize(("drops", "left"), [({"drop_clean": 1.0}, PATCH_COPY), ({"drop_codes": 1.0}, LATENT_COPY)])
def test_either_copy_of_an_edit_can_be_lost(drops: dict[str, float], left: list[int]) -> None:
    config = dataclasses.replace(TOLD, latents=dataclasses.replace(KEPT, **drops))
    assert told(EDIT, config)[0] == [BOS, *left, 8, SEP, *LATENT_COPY]


def test_shards_without_pixels_are_refused_with_the_command() -> None:
    bare = document(*(dataclasses.replace(segment, pixels=None) for segment in QUESTION.segments))
    with pytest.raises(ValueError, match="tokenize with --patch"):
        render(bare, SPACE, dataclasses.replace(TOLD, image_first=1.0), Random(0))
    with pytest.raises(ValueError, match="at least one pixel"):
        LatentTemplateConfig(vit_patch=0)


def test_a_batch_places_every_patch_and_numbers_copies_of_both_kinds() -> None:
    asked = dataclasses.replace(TOLD, image_first=1.0)
    rows = [[render(QUESTION, SPACE, asked, Random(0)), render(EDIT, SPACE, TOLD, Random(0))], []]
    batch = collate(rows, 50, SPACE)
    packed = batch.patches
    assert isinstance(packed, PackedPatches) and batch.spans is not None
    edit = len(rows[0][0])
    for start, seed in ((2, 0), (edit + 10, 1)):
        assert torch.equal(packed.values[0, start : start + 2], torch.from_numpy(cut_patches(pixels(seed), 2))[0])
        assert packed.cells[0, start : start + 2].tolist() == [[0, 0], [0, 1]]
    assert int((packed.cells[..., 0] >= 0).sum()) == 4
    assert batch.spans[0].unique().tolist() == [-4, 0, 1, 2, 3]
    assert torch.equal(batch.to("cpu").patches.values, packed.values)  # pyright: ignore[reportOptionalMemberAccess]
    assert int((batch.rows(1, 2).patches.cells >= 0).sum()) == 0  # pyright: ignore[reportOptionalMemberAccess]
    alone = collate([[rows[0][0]]], 10, SPACE)
    assert alone.latents is None and alone.patches is not None and alone.spans is not None


@pytest.mark.parametrize(("made", "asked", "reason"), [(None, 4, "holds none"), (8, 4, "those for patches of 8")])
def test_pixels_of_another_kind_than_asked_for_are_refused(
    tmp_path: Path, made: int | None, asked: int, reason: str
) -> None:
    folder = tiny_shards(tmp_path / "shards", 4, latents=True, patch=made)
    templates = TemplateConfig(latents=LatentTemplateConfig(vit_patch=asked))
    data = TokenDataModule([str(folder)], StreamConfig(length=64, rows=2), templates)
    with pytest.raises(ValueError, match=reason):
        data.setup("fit")
