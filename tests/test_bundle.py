"""Bundles: what is saved is what is opened, damage is told in a line each, and bundles of earlier versions open."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import unimodal
from tests.oracles.tiny import (
    tiny_autoencoder,
    tiny_bundle,
    tiny_flow_pipeline,
    tiny_image_tokenizer,
    tiny_pipeline,
    tiny_shards,
    tiny_space,
)
from tokenizers_vq.bundle_files import AUTOENCODER, IMAGE_TOKENIZER, TEXT_TOKENIZER, Tokenizers
from tokenizers_vq.text import TextTokenizer
from unimodal.bundle import Bundle
from unimodal.model.checkpoint import CONFIG_FILE, WEIGHTS_FILE

OLD_NAMES = ((r"\.qkv\.", "."), (r"^trunk\.", ""), (r"^heads\.tokens\.", "head."))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a flow branch."""
    folder = tmp_path_factory.mktemp("bundle") / "model"
    tiny_flow_pipeline().save(folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(whole, tmp_path / "model")


def test_a_bundle_that_was_saved_opens_as_it_was(whole: Path, tmp_path: Path) -> None:
    saved, opened = tiny_flow_pipeline().bundle, Bundle.open(whole)
    assert (opened.space, opened.path, opened.model.config) == (saved.space, whole, saved.model.config)
    assert opened.tokenizers.image and opened.tokenizers.autoencoder and saved.tokenizers.autoencoder
    assert opened.tokenizers.text.hash == saved.space.text_hash
    assert opened.tokenizers.image.hash == saved.space.image_hash
    assert opened.tokenizers.autoencoder.hash == saved.tokenizers.autoencoder.hash
    expected = saved.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in opened.model.state_dict().items())
    opened.save(tmp_path / "again")
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    assert [(tmp_path / "again" / name).read_bytes() for name in files] == [
        (whole / name).read_bytes() for name in files
    ]
    assert (len(opened.sha256), opened.sha256, saved.sha256) == (64, Bundle.open(tmp_path / "again").sha256, "")


def test_weights_open_in_another_type_and_the_autoencoder_keeps_its_own(whole: Path) -> None:
    opened = Bundle.open(whole, torch.bfloat16)
    assert {parameter.dtype for parameter in opened.model.parameters()} == {torch.bfloat16}
    assert opened.tokenizers.autoencoder is not None
    assert {parameter.dtype for parameter in opened.tokenizers.autoencoder.parameters()} == {torch.float32}


def test_the_public_load_takes_what_the_docs_promise(whole: Path) -> None:
    model = unimodal.load(str(whole), dtype=torch.bfloat16, compile=False, packed=False)
    assert model.model.dtype == torch.bfloat16
    assert model.text_tokenizer is model.bundle.tokenizers.text and model.token_space is model.bundle.space


def test_tokenizers_beside_shards_make_a_bundle_of_a_model_in_training(tmp_path: Path) -> None:
    shards = tiny_shards(tmp_path / "shards", 8, latents=True)
    pipeline = tiny_pipeline()
    discrete = Bundle.beside(pipeline.model, pipeline.token_space, shards)
    assert discrete.tokenizers.autoencoder is None, "a model without a flow branch has no use for it"
    flow = Bundle.beside(tiny_flow_pipeline().model, pipeline.token_space, shards)
    assert flow.tokenizers.autoencoder is not None
    assert Tokenizers.open(shards, pipeline.token_space).autoencoder is not None
    assert Tokenizers.open(shards, pipeline.token_space, latents=False).autoencoder is None


def _cut(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:50])


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "config cut": (_cut(CONFIG_FILE), "does not hold a model"),
    "config missing": (lambda folder: (folder / CONFIG_FILE).unlink(), "does not hold a model"),
    "weights cut": (_cut(WEIGHTS_FILE), "does not hold a model"),
    "weights missing": (lambda folder: (folder / WEIGHTS_FILE).unlink(), "does not hold a model"),
    "token space cut": (_cut("token_space.json"), "token_space.json"),
    "another token space": (lambda folder: tiny_space().save(folder), "its token space 24"),
    "text tokenizer missing": (lambda folder: shutil.rmtree(folder / TEXT_TOKENIZER), "text_tokenizer is missing"),
    "another text tokenizer": (
        lambda folder: TextTokenizer.train(["other words entirely"], 300).save(folder / TEXT_TOKENIZER),
        "the text tokenizer is not the one of its token space",
    ),
    "image tokenizer cut": (_cut(f"{IMAGE_TOKENIZER}/{WEIGHTS_FILE}"), "does not hold an image tokenizer"),
    "another image tokenizer": (
        lambda folder: tiny_image_tokenizer(seed=1).save(folder / IMAGE_TOKENIZER),
        "the image tokenizer is not the one of its token space",
    ),
    "autoencoder missing": (lambda folder: shutil.rmtree(folder / AUTOENCODER), "no autoencoder folder to draw with"),
    "another autoencoder": (
        lambda folder: tiny_autoencoder(seed=1).save(folder / AUTOENCODER),
        "is not the autoencoder that the model was trained with",
    ),
    "another width of latents": (
        lambda folder: tiny_autoencoder(latent_dim=5).save(folder / AUTOENCODER),
        "2x2 latents of 5 channels, the model was trained on 2x2 of 3",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_each_damage_is_one_line_that_names_the_folder(damage: str, folder: Path) -> None:
    assert Bundle.verify(folder) == []
    harm, reason = DAMAGE[damage]
    harm(folder)
    [problem, *others] = Bundle.verify(folder)
    assert reason in problem and str(folder) in problem and "\n" not in problem
    assert all("not the one of its token space" in other for other in others), "a changed token space fits no tokenizer"
    with pytest.raises(ValueError, match=re.escape(reason)):
        Bundle.open(folder)


def test_all_that_is_wrong_with_a_bundle_is_told_at_once(folder: Path) -> None:
    (folder / WEIGHTS_FILE).unlink()
    for name in ("text tokenizer missing", "another image tokenizer", "autoencoder missing"):
        DAMAGE[name][0](folder)
    reasons = [
        "does not hold a model",
        "text_tokenizer is missing",
        "the image tokenizer is not",
        "no autoencoder folder",
    ]
    problems = Bundle.verify(folder)
    assert len(problems) == 4
    assert all(reason in problem for reason, problem in zip(reasons, problems, strict=True))


def test_what_is_no_folder_has_one_problem(tmp_path: Path) -> None:
    [problem] = Bundle.verify(tmp_path / "nothing")
    assert "is not a folder" in problem


def test_a_bundle_of_an_earlier_version_opens_and_is_sound(tmp_path: Path) -> None:
    """Flat config and names without prefixes, as until R2."""
    folder = tiny_bundle(tmp_path / "model")
    today = Bundle.open(folder)
    config = json.loads((folder / CONFIG_FILE).read_text())
    trunk = dict(config["trunk"])
    rope = trunk.pop("rope")
    old = {"vocab_size": config["vocab_size"], **trunk, "rope_theta": rope["theta"], "flow": None, "vision": None}
    (folder / CONFIG_FILE).write_text(json.dumps(old))
    tensors = {}
    for name, tensor in load_file(folder / WEIGHTS_FILE).items():
        for pattern, before in OLD_NAMES:
            name = re.sub(pattern, before, name)
        tensors[name] = tensor
    assert "embedding.weight" in tensors and not any(name.startswith("trunk.") for name in tensors)
    save_file(tensors, folder / WEIGHTS_FILE)
    assert Bundle.verify(folder) == []
    opened = Bundle.open(folder)
    assert opened.model.config == today.model.config
    expected = today.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in opened.model.state_dict().items())


def fields(values: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The paths of all fields of nested objects."""
    if not isinstance(values, dict):
        return []
    return [found for name, value in values.items() for found in ((*path, name), *fields(value, (*path, name)))]


@pytest.mark.parametrize("part", ["", IMAGE_TOKENIZER, AUTOENCODER])
def test_a_field_of_a_wrong_type_is_one_line_wherever_it_stands(part: str, tmp_path: Path) -> None:
    tiny_flow_pipeline(vit=True).save(tmp_path / "whole")
    file = tmp_path / "whole" / part / CONFIG_FILE
    written = json.loads(file.read_text())
    for path in fields(written):
        for wrong in (None, [1], "x", {"x": 1}, True):
            values = json.loads(json.dumps(written))
            holder = values
            for name in path[:-1]:
                holder = holder[name]
            if type(holder[path[-1]]) is type(wrong) or (wrong is None and path[-1] in ("qk_norm", "scaling")):
                continue
            holder[path[-1]] = wrong
            file.write_text(json.dumps(values))
            with pytest.raises(ValueError, match=re.escape(str(tmp_path / "whole"))) as error:
                Bundle.open(tmp_path / "whole")
            assert "\n" not in str(error.value), (path, wrong)
