"""DataSpec: what every data module that trains the transformer tells of itself."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from data_pipelines.datamodule import TokenDataModule
from data_pipelines.mixture import MixtureConfig
from data_pipelines.planning import StreamConfig
from data_pipelines.raw import RawDataModule
from data_pipelines.spec import DataSpec, data_spec
from data_pipelines.templates import TemplateConfig
from tests.oracles.tiny import tiny_autoencoder, tiny_shards
from tokenizers_vq.media import MediaSpec, PatchSpec

STREAM = StreamConfig(length=48, rows=3, window=16)
BOTH = TemplateConfig(seen="patches", drawn="latents", patch_size=4)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_shards(tmp_path_factory.mktemp("data") / "shards", latents=True, patch=4)


def modules(shards: Path, templates: TemplateConfig) -> list[TokenDataModule]:
    """One on shards, one on the pictures that they were made of."""
    pictures = shards.with_name("shards-pictures")
    return [
        TokenDataModule([str(shards)], STREAM, templates, validation_share=0.3),
        RawDataModule(
            "imagefolder", shards, pictures, stream=STREAM, templates=templates, validation_share=0.3, max_patches=16
        ),
    ]


def test_shards_and_raw_sources_tell_the_same(shards: Path) -> None:
    specs = []
    for data in modules(shards, BOTH):
        with pytest.raises(ValueError, match="call setup first"):
            _ = data.spec
        data.setup("fit")
        specs.append(data.spec)
    for spec in specs:
        assert spec.tokenizers_folder == shards and (spec.tokenizers_folder / "image_tokenizer").is_dir()
        assert spec.space == specs[0].space and not spec.ends and spec.batch_tokens == 144
        assert spec.media["latents"] == tiny_autoencoder().media and spec.media["patches"].width == 48
        assert [one.key for one in spec.held_out] == [one.key for one in specs[0].held_out] and len(spec.held_out) > 0
    patches = [spec.media["patches"].sizing for spec in specs]
    assert patches == [PatchSpec(size=4, max_patches=16, max_side=8), PatchSpec.of(4, 16)]
    assert [totals.documents for totals in specs[0].totals] == [24]


@pytest.mark.parametrize(
    ("templates", "media"),
    [
        (TemplateConfig(), set()),
        (TemplateConfig(drawn="latents"), {"latents"}),
        (TemplateConfig(seen="patches"), {"patches"}),
        (BOTH, {"latents", "patches"}),
    ],
)
def test_a_spec_names_the_media_of_its_batches_alone(shards: Path, templates: TemplateConfig, media: set[str]) -> None:
    for data in modules(shards, templates):
        data.setup("fit")
        assert set(data.spec.media) == media
        found: set[str] = set()
        for batch in data.val_dataloader():
            found |= set(batch.media)
        assert found == media


def test_it_tells_whether_the_stream_ends(shards: Path) -> None:
    for when_dry, ends in (("repeat", False), ("stop", True)):
        mixture = MixtureConfig(weights=(1.0,), when_dry=when_dry)  # pyright: ignore[reportArgumentType]
        data = TokenDataModule([str(shards)], STREAM, mixture=mixture)
        data.setup("fit")
        assert data.spec.ends is ends and data.spec.mixture == mixture


def test_media_that_were_not_made_alike_are_not_mixed(shards: Path, tmp_path: Path) -> None:
    other = tiny_shards(tmp_path / "other", 4, latents=True, patch=8)
    templates = TemplateConfig(seen="patches")
    with pytest.raises(ValueError, match="hold patches that were not made alike"):
        TokenDataModule([str(shards), str(other)], STREAM, templates).setup("fit")
    TokenDataModule([str(shards), str(other)], STREAM, TemplateConfig(drawn="latents")).setup("fit")


def test_a_run_without_such_a_data_module_is_refused(shards: Path) -> None:
    for trainer in (None, SimpleNamespace(), SimpleNamespace(datamodule=None), SimpleNamespace(datamodule=object())):
        with pytest.raises(ValueError, match="trains on a TokenDataModule or RawDataModule"):
            data_spec(trainer)
    data = modules(shards, TemplateConfig())[0]
    data.setup("fit")
    assert data_spec(SimpleNamespace(datamodule=data)) is data.spec


def test_data_without_tokenizers_beside_it_says_so(shards: Path) -> None:
    data = modules(shards, TemplateConfig())[0]
    data.setup("fit")
    with pytest.raises(ValueError, match="no tokenizers lie beside"):
        _ = DataSpec(space=data.spec.space).tokenizers_folder
    assert MediaSpec.of_patches(PatchSpec()).name == "patches"
