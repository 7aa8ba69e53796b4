"""An AutoencoderKL that diffusers saved: our adapter against diffusers' own encode and decode."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.oracles.pictures import SIZE, random_images
from tokenizers_vq.autoencoder import open_autoencoder
from tokenizers_vq.latent_patches import latents_to_patches

AutoencoderKL: Any = importlib.import_module("diffusers").AutoencoderKL
SHIFTED = {"scaling_factor": 0.7, "shift_factor": 0.3}
STATISTICS = {
    "plain": {},
    "shifted": SHIFTED,
    "per channel": {"scaling_factor": 0.5, "latents_mean": [0.1, -0.2, 0.3], "latents_std": [1.0, 2.0, 3.0]},
}


def saved(folder: Path, **options: Any) -> Any:
    """A tiny untrained one, also written to a folder. 8x8 latents of 3 channels for images of 16 pixels."""
    network = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        norm_num_groups=4,
        latent_channels=3,
        sample_size=SIZE,
        **options,
    )
    network.save_pretrained(folder)
    return network.eval().requires_grad_(False)


def normalised(latents: torch.Tensor, config: Any) -> torch.Tensor:
    """As diffusers' pipelines write it: one factor, or a mean and a standard deviation of each channel."""
    if config.latents_mean is None:
        return (latents - (config.shift_factor or 0)) * config.scaling_factor
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (config.latents_mean, config.latents_std))
    return (latents - mean) * config.scaling_factor / std


@pytest.mark.parametrize("statistics", STATISTICS)
def test_the_adapter_encodes_and_decodes_as_diffusers_does(tmp_path: Path, statistics: str) -> None:
    network, images = saved(tmp_path, **STATISTICS[statistics]), random_images(4)
    autoencoder = open_autoencoder(tmp_path)
    assert (autoencoder.latent_dim, autoencoder.reduction, autoencoder.grid, autoencoder.image_size) == (3, 2, 8, SIZE)
    distribution = network.encode(images).latent_dist
    expected = normalised(distribution.mean, network.config)
    torch.testing.assert_close(autoencoder.encode(images), expected, rtol=0, atol=1e-5)
    sampled = normalised(distribution.sample(torch.Generator().manual_seed(1)), network.config)
    found = autoencoder.encode(images, torch.Generator().manual_seed(1))
    torch.testing.assert_close(found, sampled, rtol=0, atol=1e-5)
    decoded = network.decode(distribution.mean).sample.clamp(-1, 1)
    torch.testing.assert_close(autoencoder.decode(expected), decoded, rtol=0, atol=1e-5)


def test_a_patch_in_the_config_is_ours_and_stays_there(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    single, images = open_autoencoder(tmp_path / "a"), random_images(4)
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    (tmp_path / "a" / "config.json").write_text(json.dumps({**config, "latent_patch": 2}))
    open_autoencoder(tmp_path / "a").save(tmp_path / "b")
    patched = open_autoencoder(tmp_path / "b")
    assert (patched.latent_dim, patched.reduction, patched.grid) == (12, 4, 4)
    assert torch.equal(patched.encode(images).flatten(2).mT, latents_to_patches(single.encode(images), 2))
    assert torch.equal(patched.decode(patched.encode(images)), single.decode(single.encode(images)))
    assert patched.hash != single.hash


def test_the_hash_follows_weights_and_statistics_and_not_who_saved_them(tmp_path: Path) -> None:
    network = saved(tmp_path / "a", **SHIFTED)
    network.save_pretrained(tmp_path / "b")
    for key, value in (("_diffusers_version", "0.0.1"), ("scaling_factor", 0.8)):
        config = json.loads((tmp_path / "b" / "config.json").read_text())
        (tmp_path / "b" / "config.json").write_text(json.dumps({**config, key: value}))
        same = open_autoencoder(tmp_path / "a").hash == open_autoencoder(tmp_path / "b").hash
        assert same == (key == "_diffusers_version")
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] += 1e-3
    network.save_pretrained(tmp_path / "c")
    assert open_autoencoder(tmp_path / "c").hash != open_autoencoder(tmp_path / "a").hash


def test_the_image_size_is_the_callers_where_he_gives_one(tmp_path: Path) -> None:
    saved(tmp_path)
    autoencoder = open_autoencoder(tmp_path, image_size=2 * SIZE)
    assert (autoencoder.image_size, autoencoder.grid) == (2 * SIZE, 16)
    assert not autoencoder.training and not any(parameter.requires_grad for parameter in autoencoder.parameters())
    with pytest.raises(ValueError, match="17 pixels cannot be cut into latents of 2"):
        open_autoencoder(tmp_path, image_size=17)


def pickled(folder: Path) -> None:
    """The same weights, in a file that only pickle reads."""
    file = folder / "diffusion_pytorch_model.safetensors"
    torch.save(AutoencoderKL.from_pretrained(folder).state_dict(), file.with_suffix(".bin"))
    file.unlink()


def cut(folder: Path) -> None:
    file = folder / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def changed(key: str, value: object) -> Callable[[Path], None]:
    """A damage: another value in config.json."""

    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, key: value}))

    return damage


DAMAGES: dict[str, Callable[[Path], None]] = {
    "weights pickled": pickled,
    "weights cut short": cut,
    "weights of fewer layers": changed("layers_per_block", 2),
    "weights of another width": changed("latent_channels", 4),
    "config of unknown blocks": changed("down_block_types", ["Wavelet", "Wavelet"]),
    "config of words": changed("scaling_factor", "large"),
    "patches of nothing": changed("latent_patch", 0),
    "patches below nothing": changed("latent_patch", -2),
    "patches of a fraction": changed("latent_patch", 2.0),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_pickled_folder_is_refused_in_one_line_that_names_it(tmp_path: Path, damage: str) -> None:
    saved(tmp_path / "ae")
    DAMAGES[damage](tmp_path / "ae")
    with pytest.raises(ValueError, match=r"ae does not hold an AutoencoderKL") as caught:
        open_autoencoder(tmp_path / "ae")
    assert "\n" not in str(caught.value)


def test_without_its_extra_it_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"pip install 'unimodal\[diffusers\]'") as caught:
        open_autoencoder(tmp_path)
    assert "\n" not in str(caught.value)
