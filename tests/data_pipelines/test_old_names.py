"""What earlier versions wrote still opens: shards of format version 1, configs, parts of an interrupted job."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from data_pipelines import old_names
from data_pipelines.datamodule import TokenDataModule
from data_pipelines.images import cut_patches
from data_pipelines.old_names import upgrade_data_config, upgrade_manifest, upgrade_templates
from data_pipelines.planning import StreamConfig
from data_pipelines.shards.format import DamagedShard, Manifest
from data_pipelines.shards.parts import JobParts
from data_pipelines.shards.reader import open_manifest, read_all
from data_pipelines.templates import TemplateConfig
from tests.oracles.tiny import tiny_shards
from tests.oracles.tiny_training import fit_arguments
from tests.oracles.token_documents import CODES, SPACE
from tokenizers_vq.media import LatentSpec, MediaSpec, PatchSpec
from unimodal.training.cli import run

LATENTS = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float16)
PIXELS = np.random.default_rng(1).integers(0, 256, size=(2, 2, 4, 6, 3), dtype=np.uint8)
"""Of two documents, two images each, 4 x 6 pixels."""
AUTOENCODER = {"hash": "a", "image_size": 24, "latent_dim": 5, "reduction": 8, "grid": 3}
PATCHES = {"patch": 2, "most": 9, "longest": 4}
OLD_MANIFEST: dict[str, Any] = {
    "format_version": 1,
    "token_space": SPACE.to_dict(),
    "fingerprint": SPACE.fingerprint,
    "image_policy": {"size": 16},
    "source": {"tokenize": {"copies": 1}},
    "left_out": {"a broken picture": 2},
    "autoencoder": AUTOENCODER,
    "patches": PATCHES,
}


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def old_folder(folder: Path, pixels: np.ndarray = PIXELS, **changes: Any) -> Path:
    """Two documents of text, two images and text, byte for byte as version 1 wrote them."""
    folder.mkdir()
    buffer, sides = io.BytesIO(), list(pixels.shape[2:4])
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number, name in enumerate(("first", "second")):
            described: list[dict[str, Any]] = [
                {"kind": "image", "role": "image", "start": 0, "length": 4, "latents": [2, 3], "pixels": sides},
                {"kind": "text", "role": "request", "start": 4, "length": 2},
                {"kind": "image", "role": "answer", "start": 6, "length": 4, "latents": [2, 3], "pixels": sides},
            ]
            parts = {
                "ids.npy": npy(np.array([*CODES, 8, 9, *CODES], dtype=np.uint16)),
                "latents.npy": npy(np.concatenate([LATENTS.reshape(-1, 5) + number, LATENTS.reshape(-1, 5) - 1])),
                "pixels.npy": npy(pixels[number].reshape(-1, 3)),
                "json": json.dumps({"segments": described, "meta": {"layout": "dialogue", "task": "edit"}}).encode(),
            }
            for ending, data in parts.items():
                member = tarfile.TarInfo(f"{name}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    data = buffer.getvalue()
    (folder / "000000.tar").write_bytes(data)
    entry = {"name": "000000.tar", "sha256": hashlib.sha256(data).hexdigest(), "documents": 2}
    manifest = {**OLD_MANIFEST, "shards": [{**entry, "text_tokens": 4, "image_tokens": 16}], **changes}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_shards_of_version_1_open_with_their_latents_and_images_cut_into_patches(tmp_path: Path) -> None:
    folder = old_folder(tmp_path / "old")
    manifest = open_manifest(folder)
    assert manifest.skipped == {"a broken picture": 2} and manifest.image_policy == {"size": 16}
    sizing = LatentSpec(reduction=8, image_size=24)
    assert dict(manifest.media) == {
        "latents": MediaSpec(name="latents", width=5, sizing=sizing, source="a"),
        "patches": MediaSpec.of_patches(PatchSpec(size=2, max_patches=9, max_side=4)),
    }
    assert manifest.media["latents"].max_side == AUTOENCODER["grid"]
    space, documents = read_all(folder)
    assert space == SPACE and [one.key for one in documents] == ["first", "second"]
    for number, one in enumerate(documents):
        assert (one.layout, one.task) == ("dialogue", "edit")
        shown, request, answer = one.segments
        assert request.media == {} and request.ids.tolist() == [8, 9]
        assert np.array_equal(shown.media["latents"], LATENTS + number)
        assert np.array_equal(answer.media["latents"], LATENTS - 1)
        for segment, pixels in ((shown, PIXELS[number, 0]), (answer, PIXELS[number, 1])):
            assert segment.media["patches"].shape == (2, 3, 12)
            assert np.array_equal(segment.media["patches"], cut_patches(pixels, 2))


@pytest.mark.parametrize(
    ("pixels", "changes", "reason"),
    [
        (PIXELS, {"autoencoder": {**AUTOENCODER, "latent_dim": 4}}, "latents are float16 in rows of 4"),
        (PIXELS, {"autoencoder": None}, "unexpected member 'first.latents.npy'"),
        (PIXELS, {"autoencoder": {"hash": "a"}}, "not a shard manifest"),
        (PIXELS, {"patches": {"most": 3}}, "not a shard manifest"),
        (PIXELS, {"patches": {**PATCHES, "patch": 0}}, "at least one pixel"),
        (PIXELS.astype(np.float32), {}, "pixels are uint8 in rows of three"),
        (PIXELS[:, :, :3], {}, "3x6 pixels cannot be cut into patches of 2"),
    ],
)
def test_damage_in_shards_of_version_1_is_named(
    tmp_path: Path, pixels: np.ndarray, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(DamagedShard, match=reason):
        read_all(old_folder(tmp_path / "old", pixels, **changes))


def test_old_and_new_shards_of_the_same_documents_give_the_same_batches(tmp_path: Path) -> None:
    from data_pipelines.shards.writer import ShardWriter
    from tests.data_pipelines.test_stream import all_equal

    old = old_folder(tmp_path / "old")
    manifest = open_manifest(old)
    with ShardWriter(tmp_path / "new", SPACE, image_policy={}, source={}, media=manifest.media) as writer:
        for one in read_all(old)[1]:
            writer.write(one)
    assert json.loads((tmp_path / "new" / "manifest.json").read_text())["format_version"] == 2
    templates = TemplateConfig(seen="patches", drawn="latents", drop_image=0.0)
    batches = []
    for folder in (old, tmp_path / "new"):
        data = TokenDataModule([str(folder)], StreamConfig(length=64, rows=2), templates, validation_share=0)
        data.setup("fit")
        assert set(data.spec.media) == {"latents", "patches"}
        batches.append(list(data.test_dataloader()))
    assert all_equal(*batches) and set(batches[0][0].media) == {"latents", "patches"}


def test_every_old_name_of_a_manifest_has_a_present_one() -> None:
    """The table, walked: what it maps from was written, what it maps to is read."""
    upgraded = upgrade_manifest({**OLD_MANIFEST, "shards": []})
    fields = Manifest.__dataclass_fields__
    for old, new in old_names.MANIFEST_KEYS.items():
        assert old in OLD_MANIFEST and old not in fields and new in fields and upgraded[new] == OLD_MANIFEST[old]
    for old, new in old_names.AUTOENCODER_KEYS.items():
        assert upgraded["media"]["latents"][new] == AUTOENCODER[old]
    for old, new in old_names.PATCH_KEYS.items():
        assert upgraded["media"]["patches"]["sizing"][new] == PATCHES[old]
    assert set(old_names.MEMBERS.values()) <= upgraded["media"].keys()
    Manifest.from_dict({**OLD_MANIFEST, "shards": []})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({}, {}),
        ({"image_first": 0.3}, {"image_first": 0.3}),
        ({"latents": None}, {}),
        ({"latents": {}}, {"drawn": "latents"}),
        ({"latents": {"whole": 0.03}}, {"drawn": "latents", "latents": {"whole": 0.03}}),
        (
            {"image_first": 0.15, "latents": {"whole": 0.03, "vit_patch": 8}},
            {
                "image_first": 0.15,
                "drawn": "latents",
                "latents": {"whole": 0.03},
                "seen": "patches",
                "patch_size": 8,
            },
        ),
        (
            {"latents": {"drop_clean": 0.1, "vit_patch": None}},
            {"drawn": "latents", "latents": {"drop_clean": 0.1}},
        ),
        ({"drawn": "latents", "latents": {"whole": 0.1}}, {"drawn": "latents", "latents": {"whole": 0.1}}),
        ({"seen": "patches", "latents": {"whole": 0.1}}, {"seen": "patches", "latents": {"whole": 0.1}}),
    ],
)
def test_old_templates_are_upgraded_and_present_ones_stay(old: dict[str, Any], new: dict[str, Any]) -> None:
    before = copy.deepcopy(old)
    assert upgrade_templates(old) == new and old == before
    assert upgrade_templates(upgrade_templates(old)) == new
    assert set(new) <= set(TemplateConfig.__dataclass_fields__)


def test_every_old_name_of_a_config_has_a_present_one() -> None:
    from inspect import signature

    from data_pipelines.raw import RawDataModule

    for old, new in old_names.TEMPLATE_KEYS.items():
        assert old not in TemplateConfig.__dataclass_fields__ and new in TemplateConfig.__dataclass_fields__
    for old, new in old_names.DATA_KEYS.items():
        arguments = signature(RawDataModule.__init__).parameters
        assert old not in arguments and new in arguments
        config = {"data": {"class_path": "RawDataModule", "init_args": {old: 9}}}
        assert upgrade_data_config({"fit": config})["fit"]["data"]["init_args"] == {new: 9}
    for other in (None, "a: text", {"data": None}, {"data": {"class_path": "x"}}, {"model": {"latents": {}}}):
        assert upgrade_data_config(other) == other


@pytest.mark.slow
def test_a_run_is_configured_by_a_yaml_of_an_earlier_version(tmp_path: Path) -> None:
    """Through the real command line, to the first step."""
    shards = tiny_shards(tmp_path / "shards", 8, latents=True, patch=4)
    old = {
        "data": {
            "class_path": "TokenDataModule",
            "init_args": {"templates": {"image_first": 0.25, "latents": {"whole": 0.03, "vit_patch": 4}}},
        }
    }
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(old))
    options: dict[str, Any] = {"model__flow": "{}", "trainer__max_steps": 1}
    options["model__vision"] = "{dim: 16, num_layers: 1, num_heads: 2, hidden_dim: 24}"
    subcommand, *arguments = fit_arguments(shards, tmp_path / "run", **options)
    cli = run([subcommand, f"--config={tmp_path / 'old.yaml'}", *arguments])
    templates = cli.datamodule.templates
    assert (templates.seen, templates.drawn, templates.patch_size) == ("patches", "latents", 4)
    assert (templates.image_first, templates.latents.whole, templates.latents.drop_clean) == (0.25, 0.03, 0.1)
    (saved,) = (tmp_path / "run").rglob("config.yaml")
    written = yaml.safe_load(saved.read_text())["data"]["init_args"]["templates"]
    assert written["drawn"] == "latents" and "vit_patch" not in written["latents"]


def test_a_part_of_an_interrupted_job_of_an_earlier_version_counts(tmp_path: Path) -> None:
    parts = JobParts(tmp_path, {"recipe": 1})
    skipped = [{"name": "k3", "copy": 0, "reason": "a broken picture"}]
    (tmp_path / "parts" / "000000.json").write_text(json.dumps({"entry": None, "left_out": skipped}))
    found = parts.finished(0)
    assert found is not None and [(one.name, one.reason) for one in found.skipped] == [("k3", "a broken picture")]
