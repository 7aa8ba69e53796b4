"""Weights on disk: what is saved is what is loaded, and nothing else is."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.oracles.passes import logits
from tests.oracles.tiny import tiny_model, tiny_space
from unimodal.model.checkpoint import open_model, save_model

SPACE = tiny_space()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tiny_model(SPACE.vocab_size), SPACE, tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("changes", [{}, {"norm_placement": "swin", "qk_norm": None}])
def test_a_loaded_model_gives_the_logits_of_the_saved_one(tmp_path: Path, dtype: torch.dtype, changes: dict) -> None:
    saved = tiny_model(SPACE.vocab_size, dtype=dtype, **changes)
    save_model(saved, SPACE, tmp_path / "model")
    loaded, space = open_model(tmp_path / "model")
    tokens = torch.randint(SPACE.vocab_size, (2, 9))
    with torch.no_grad():
        assert torch.equal(logits(loaded, tokens), logits(saved, tokens))
    assert (space, loaded.config, loaded.training) == (SPACE, saved.config, False)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_loaded_weights_begin_where_torch_puts_its_own(folder: Path) -> None:
    in_file = load_file(folder / "model.safetensors")
    assert any(tensor.data_ptr() % 64 for tensor in in_file.values()), "the file has them at odd addresses"
    loaded, _ = open_model(folder)
    assert [name for name, weight in loaded.named_parameters() if weight.data_ptr() % 64] == []


def _cut_off(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def _overwrite_header(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(b"\xff" * 40 + weights.read_bytes()[40:])


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps({"trunk.embedding.weight": [1.0]}))


def _torch_save(folder: Path) -> None:
    torch.save(tiny_model(SPACE.vocab_size).state_dict(), folder / "model.safetensors")


def _lose_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["trunk.norm.weight"]
    save_file(tensors, folder / "model.safetensors")


def _other_width(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "trunk": {**config["trunk"], "hidden_dim": 25}}))


def _impossible_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "trunk": {**config["trunk"], "num_kv_heads": 3}}))


def _edit_space(folder: Path) -> None:
    values = json.loads((folder / "token_space.json").read_text())
    (folder / "token_space.json").write_text(json.dumps({**values, "text_size": 17}))


def _write(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def _remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights cut off": (_cut_off, "does not hold a model"),
    "weights with a broken header": (_overwrite_header, "does not hold a model"),
    "weights as pickle": (_pickle, "does not hold a model"),
    "weights from torch.save": (_torch_save, "does not hold a model"),
    "weights missing": (_remove("model.safetensors"), "does not hold a model"),
    "a tensor missing": (_lose_a_tensor, "trunk.norm.weight"),
    "tensors of another shape": (_other_width, "size mismatch"),
    "config missing": (_remove("config.json"), "does not hold a model"),
    "config cut off": (_write("config.json", '{"dim": 1'), "does not hold a model"),
    "config a list": (_write("config.json", "[1, 2]"), "not a model config"),
    "config impossible": (_impossible_config, "kv heads must divide heads"),
    "token space missing": (_remove("token_space.json"), "token_space.json is missing"),
    "token space cut off": (_write("token_space.json", "{"), "token_space.json"),
    "token space a list": (_write("token_space.json", "[]"), "token_space.json"),
    "token space changed by hand": (_edit_space, "changed by hand"),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_folder_is_refused_in_one_line(folder: Path, damage: Callable[[Path], object], reason: str) -> None:
    damage(folder)
    with pytest.raises(ValueError, match=reason) as error:
        open_model(folder)
    assert "\n" not in str(error.value)


def test_a_token_space_of_another_size_is_refused_on_saving_and_on_loading(folder: Path) -> None:
    other = tiny_space(codebook_size=9)
    with pytest.raises(ValueError, match="a vocabulary of 24 does not fit 25 ids"):
        save_model(tiny_model(SPACE.vocab_size), other, folder)
    other.save(folder)
    with pytest.raises(ValueError, match="the model has 24 ids, its token space 25"):
        open_model(folder)


def test_loading_never_unpickles(folder: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "sprung",)

    (folder / "model.safetensors").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="does not hold a model"):
        open_model(folder)
    assert not (tmp_path / "sprung").exists()
