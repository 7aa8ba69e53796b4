"""Streaming tokenization: the same documents give the same batches and losses as a shard of them."""

from __future__ import annotations

import multiprocessing
from itertools import islice
from pathlib import Path
from typing import Literal

import pytest
from PIL import Image

from data_pipelines.datamodule import TokenDataModule
from data_pipelines.failures import FailureLog, TooMuchDamage
from data_pipelines.forms import LatentTemplateConfig
from data_pipelines.media_makers import LatentsMaker, PatchesMaker
from data_pipelines.planning import StreamConfig
from data_pipelines.raw import RawDataModule
from data_pipelines.sources.registry import open_source
from data_pipelines.templates import TemplateConfig
from data_pipelines.tokenize import TokenizeConfig, tokenize
from tests.data_pipelines.test_stream import all_equal
from tests.oracles.tiny import tiny_autoencoder, tiny_image_tokenizer, tiny_picture_folder, tiny_text_tokenizer
from tests.oracles.tiny_training import fit_arguments, logged
from tokenizers_vq.media import PatchSpec
from unimodal.generation.pipeline import load
from unimodal.training.cli import run

STREAM = StreamConfig(length=48, rows=3, window=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pictures`, and `shards`: one shard of them with the tokenizers beside it."""
    root = tmp_path_factory.mktemp("raw")
    text, image, failures = tiny_text_tokenizer(), tiny_image_tokenizer(), FailureLog()
    source = open_source("imagefolder", path=tiny_picture_folder(root / "pictures"), failures=failures)
    tokenize(source, text, image, root / "shards", failures, TokenizeConfig())
    text.save(root / "shards" / "text_tokenizer")
    image.save(root / "shards" / "image_tokenizer")
    return root


@pytest.mark.parametrize("num_workers", [0, 2])
def test_pictures_that_are_tokenized_while_loading_give_the_batches_of_a_shard(folder: Path, num_workers: int) -> None:
    shards = TokenDataModule([str(folder / "shards")], STREAM)
    raw = RawDataModule("imagefolder", folder / "shards", folder / "pictures", stream=STREAM, num_workers=num_workers)
    for data in (shards, raw):
        data.setup("fit")
    assert all_equal(*[list(islice(data.train_dataloader(), 20)) for data in (shards, raw)])
    assert all_equal(*[list(data.val_dataloader()) for data in (shards, raw)])


@pytest.mark.slow
def test_training_on_them_has_the_same_losses_and_leaves_a_bundle(folder: Path, tmp_path: Path) -> None:
    run(fit_arguments(folder / "shards", tmp_path / "shards", trainer__max_steps=5))
    arguments = fit_arguments(folder / "shards", tmp_path / "raw", trainer__max_steps=5, data="RawDataModule")
    arguments = [argument for argument in arguments if not argument.startswith("--data.shards")]
    chosen = {"source": "imagefolder", "path": folder / "pictures", "tokenizers": folder / "shards"}
    run([*arguments, *(f"--data.{name}={value}" for name, value in chosen.items())])
    losses = [logged(tmp_path / name, "train/loss") for name in ("shards", "raw")]
    assert losses[0] == losses[1] and len(set(losses[0].values())) == 5
    assert (tmp_path / "raw" / "model" / "model.safetensors").is_file()


@pytest.fixture(scope="module")
def with_copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `folder`, with latents and pixels beside the codes."""
    root = tmp_path_factory.mktemp("raw")
    text, image, autoencoder, failures = tiny_text_tokenizer(), tiny_image_tokenizer(), tiny_autoencoder(), FailureLog()
    source = open_source("imagefolder", path=tiny_picture_folder(root / "pictures"), failures=failures)
    media = [LatentsMaker(autoencoder), PatchesMaker(PatchSpec.of(4, 9))]
    tokenize(source, text, image, root / "shards", failures, TokenizeConfig(), media)
    text.save(root / "shards" / "text_tokenizer")
    image.save(root / "shards" / "image_tokenizer")
    autoencoder.save(root / "shards" / "autoencoder")
    return root


@pytest.mark.parametrize("seen", ["codes", "patches"])
def test_media_that_are_made_while_loading_are_those_of_a_shard(
    with_copies: Path, seen: Literal["codes", "patches"]
) -> None:
    latents = LatentTemplateConfig(whole=0.5)
    templates = TemplateConfig(seen=seen, drawn="latents", latents=latents, patch_size=4)
    shards = TokenDataModule([str(with_copies / "shards")], STREAM, templates)
    where = ("imagefolder", with_copies / "shards", with_copies / "pictures")
    raw = RawDataModule(*where, stream=STREAM, templates=templates, num_workers=1, max_patches=9)
    for data in (shards, raw):
        data.setup("fit")
    batches = [list(islice(data.train_dataloader(), 8)) for data in (shards, raw)]
    assert all_equal(*batches, atol=1e-3), "latents are encoded one by one here, and rounded to float16"
    assert raw.spec.media == shards.spec.media
    assert all("latents" in batch.media for batch in batches[1])
    assert all(("patches" in batch.media) == (seen == "patches") for batch in batches[1])


@pytest.mark.slow
def test_the_flow_branch_trains_on_them_with_the_same_losses_and_leaves_a_bundle_that_draws(
    with_copies: Path, tmp_path: Path
) -> None:
    flow: dict[str, str | float] = {"model__flow": "{}", "data__templates__drawn": "latents", "trainer__max_steps": 4}
    run(fit_arguments(with_copies / "shards", tmp_path / "shards", **flow))
    arguments = fit_arguments(with_copies / "shards", tmp_path / "raw", **flow, data="RawDataModule")
    arguments = [argument for argument in arguments if not argument.startswith("--data.shards")]
    chosen = {"source": "imagefolder", "path": with_copies / "pictures", "tokenizers": with_copies / "shards"}
    run([*arguments, *(f"--data.{name}={value}" for name, value in chosen.items())])
    losses = [logged(tmp_path / name, "train/loss") for name in ("shards", "raw")]
    assert losses[0] == losses[1] and len(set(losses[0].values())) == 4
    [[picture]] = load(tmp_path / "raw" / "model").generate(["a red picture"], mode="image", steps=2)
    assert isinstance(picture, Image.Image)


@pytest.mark.slow
@pytest.mark.parametrize("flow", [{}, {"model__flow": "{}", "data__templates__drawn": "latents"}])
def test_samples_of_them_are_drawn_and_asked_about_while_training(
    with_copies: Path, tmp_path: Path, flow: dict[str, str | float]
) -> None:
    more: dict[str, str | float] = {"trainer__max_steps": 1, "samples__every": 1, "data__validation_share": 0.3}
    arguments = fit_arguments(with_copies / "shards", tmp_path, **flow, **more, data="RawDataModule")
    arguments = [argument for argument in arguments if not argument.startswith("--data.shards")]
    chosen = {"source": "imagefolder", "path": with_copies / "pictures", "tokenizers": with_copies / "shards"}
    run([*arguments, *(f"--data.{name}={value}" for name, value in chosen.items())])
    assert "what color is it? -> " in (tmp_path / "samples" / "answers-000001.txt").read_text()


def test_loader_processes_begin_as_forks_wherever_python_would_rather_not(
    folder: Path, request: pytest.FixtureRequest
) -> None:
    before = multiprocessing.get_start_method()
    request.addfinalizer(lambda: multiprocessing.set_start_method(before, force=True))
    multiprocessing.set_start_method("spawn", force=True)
    for data in (
        TokenDataModule([str(folder / "shards")], STREAM, num_workers=1),
        RawDataModule("imagefolder", folder / "shards", folder / "pictures", stream=STREAM, num_workers=1),
    ):
        data.setup("fit")
        assert next(iter(data.train_dataloader())).num_tokens > 0


def test_the_flow_branch_without_an_autoencoder_is_refused(folder: Path) -> None:
    templates = TemplateConfig(drawn="latents")
    data = RawDataModule("imagefolder", folder / "shards", folder / "pictures", stream=STREAM, templates=templates)
    with pytest.raises(ValueError, match=r"needs .*shards/autoencoder, which is not there: tokenize"):
        data.setup("fit")


def test_damage_is_found_before_training_and_too_much_of_it_stops(tmp_path: Path, folder: Path) -> None:
    pictures = tiny_picture_folder(tmp_path / "pictures")
    (pictures / "003.png").write_bytes(b"not a picture")
    data = RawDataModule("imagefolder", folder / "shards", pictures, stream=STREAM, validation_share=0)
    data.setup("fit")
    assert len(data.train_sources[0]) == 23
    strict = RawDataModule("imagefolder", folder / "shards", pictures, stream=STREAM, max_bad=0.01)
    with pytest.raises(TooMuchDamage, match=r"1 of 24 samples cannot be used, over the limit of 1%.*003\.png"):
        strict.setup("fit")
