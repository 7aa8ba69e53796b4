"""Image autoencoder: pictures to latents and back, what its statistics promise, and from its folder as from memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import avg_pool2d

from tests.oracles.pictures import BACKBONES, SIZE, random_images, tiny_tokenizer
from tokenizers_vq.autoencoder import ImageAutoencoder, ImageAutoencoderConfig, open_autoencoder
from tokenizers_vq.image_tokenizer import ImageTokenizer
from tokenizers_vq.latent_patches import latents_to_patches
from tokenizers_vq.latents import Posterior

CHANNELS = 3


def tiny_autoencoder(backbone: str = "patch", latent_dim: int = CHANNELS) -> ImageAutoencoder:
    """Untrained, in evaluation mode, not measured. 2x2 latents for images of 16 pixels."""
    config = ImageAutoencoderConfig(image_size=SIZE, backbone=BACKBONES[backbone], latent_dim=latent_dim)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ImageAutoencoder(config).eval()


def measured_autoencoder(backbone: str = "patch") -> ImageAutoencoder:
    autoencoder = tiny_autoencoder(backbone)
    autoencoder.measure(random_images(64).split(10))
    return autoencoder


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_pictures_become_latents_and_latents_become_pictures_in_range(backbone: str) -> None:
    autoencoder = measured_autoencoder(backbone)
    latents = autoencoder.encode(random_images(5))
    assert latents.shape == (5, CHANNELS, 2, 2) and latents.dtype == torch.float32
    assert (autoencoder.grid, autoencoder.reduction, autoencoder.latent_dim) == (2, 8, CHANNELS)
    images = autoencoder.decode(100 * latents)
    assert images.shape == (5, 3, SIZE, SIZE) and images.dtype == torch.float32
    assert images.abs().max() == 1


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_measured_latents_have_mean_0_and_standard_deviation_1_in_every_channel(backbone: str) -> None:
    latents = measured_autoencoder(backbone).encode(random_images(64)).double()
    mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros(CHANNELS).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(std, torch.ones(CHANNELS).double(), rtol=0, atol=1e-5)


def test_statistics_do_not_change_what_comes_back() -> None:
    autoencoder, images = tiny_autoencoder(), random_images(8)
    before, latents = autoencoder.decode(autoencoder.encode(images)), autoencoder.encode(images)
    autoencoder.measure([random_images(64)])
    assert not torch.allclose(autoencoder.encode(images), latents, atol=0.1)
    torch.testing.assert_close(autoencoder.decode(autoencoder.encode(images)), before, rtol=0, atol=1e-5)


def test_a_channel_that_never_varies_is_not_divided_by_nothing() -> None:
    autoencoder = tiny_autoencoder()
    projection = autoencoder.encoder.project
    assert isinstance(projection, torch.nn.Conv2d)
    with torch.no_grad():
        projection.weight[0].zero_()
        assert projection.bias is not None
        projection.bias[0] = 1.7
    autoencoder.measure([random_images(64)])
    assert autoencoder.latent_std[0] == 1 and autoencoder.latent_mean[0] == pytest.approx(1.7)


@pytest.mark.parametrize(
    ("images", "reason"), [([], "there is no image"), ([torch.full((1, 3, 16, 16), torch.inf)], "not finite")]
)
def test_latents_that_cannot_be_measured_are_refused(images: list[torch.Tensor], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        tiny_autoencoder().measure(images)


def test_kl_is_that_of_two_normal_distributions() -> None:
    posterior = Posterior(torch.randn(2, 3, 4, 4).double(), torch.randn(2, 3, 4, 4).double())
    expected = kl_divergence(Normal(posterior.mean, posterior.std), Normal(0.0, 1.0))
    torch.testing.assert_close(posterior.kl, expected, rtol=1e-12, atol=1e-12)


def test_training_output_is_a_sample_of_the_posterior_and_the_mean_kl() -> None:
    autoencoder, images = tiny_autoencoder(), random_images(4)
    result = autoencoder(images, seeded(3))
    sample = autoencoder.posterior(images).sample(seeded(3))
    assert torch.equal(result.reconstruction, autoencoder.pixels(sample))
    assert torch.equal(result.kl, result.posterior.kl.sum() / result.posterior.kl.numel())


def test_a_sample_repeats_with_its_seed_and_draws_nothing_from_the_global_generator() -> None:
    autoencoder, images = measured_autoencoder(), random_images(4)
    before = torch.get_rng_state()
    samples = [autoencoder.encode(images, seeded(seed)) for seed in (1, 1, 2)]
    assert torch.equal(samples[0], samples[1]) and not torch.equal(samples[0], samples[2])
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(autoencoder.encode(images), autoencoder.encode(images))


def test_samples_have_the_posteriors_mean_and_standard_deviation() -> None:
    """Of 20000 draws each; tolerances of about five standard errors."""
    autoencoder, image, number = measured_autoencoder(), random_images(1), 20000
    samples = autoencoder.encode(image.expand(number, -1, -1, -1), seeded(0)).double()
    std = (autoencoder.posterior(image).std / autoencoder.latent_std.view(1, -1, 1, 1))[0].double()
    error = (samples.mean(0) - autoencoder.encode(image)[0]) / std
    assert error.abs().max() < 5 / number**0.5
    torch.testing.assert_close(samples.std(0) / std, torch.ones_like(std), rtol=0, atol=5 / (2 * number) ** 0.5)


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_every_parameter_gets_a_gradient(backbone: str) -> None:
    autoencoder = tiny_autoencoder(backbone).train()
    result = autoencoder(random_images(8), seeded(0))
    (result.reconstruction.square().mean() + result.kl).backward()
    parameters = dict(autoencoder.named_parameters())
    assert [name for name, p in parameters.items() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_pictures_of_other_sides_become_latents_and_pictures_of_those_sides_again() -> None:
    autoencoder = measured_autoencoder()
    images = torch.cat([random_images(3), random_images(3, seed=1)[..., :8]], dim=3)
    latents = autoencoder.encode(images)
    assert latents.shape == (3, CHANNELS, 2, 3)
    decoded = autoencoder.decode(latents)
    assert decoded.shape == images.shape
    for row, column in ((0, 2), (1, 0), (1, 2)):
        patch = (..., slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8))
        other, moved = images.clone(), latents.clone()
        other[patch], moved[..., row, column] = -other[patch], -moved[..., row, column]
        change = (autoencoder.encode(other) - latents).abs().sum((0, 1))
        assert change.argmax() == 3 * row + column, "a latent lies where its patch does"
        change = (autoencoder.decode(moved) - decoded).abs().sum((0, 1))
        assert avg_pool2d(change[None], 8).argmax() == 3 * row + column


@pytest.mark.parametrize("shape", [(1, 3, 12, 16), (1, 1, 16, 16), (3, 16, 16)])
def test_pictures_that_are_not_cut_into_latents_are_refused_with_both_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"multiples of 8, got \({', '.join(map(str, shape))}\)"):
        tiny_autoencoder().encode(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 4, 2, 2), (3, 2, 2), (1, 3, 0, 2)])
def test_latents_of_another_shape_are_refused_with_both_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"\(B, 3, R, K\), got \({', '.join(map(str, shape))}\)"):
        tiny_autoencoder().decode(torch.zeros(shape))


def test_a_config_that_cannot_be_built_is_refused() -> None:
    with pytest.raises(ValueError, match="20 pixels cannot be cut into latents of 8"):
        ImageAutoencoderConfig(image_size=20, backbone=BACKBONES["patch"], latent_dim=4)
    with pytest.raises(ValueError, match="16 pixels cannot be cut into latents of 24"):
        ImageAutoencoderConfig(image_size=SIZE, backbone=BACKBONES["patch"], latent_dim=4, latent_patch=3)
    with pytest.raises(ValueError, match="at least one channel, got 0"):
        ImageAutoencoderConfig(image_size=SIZE, backbone=BACKBONES["patch"], latent_dim=0)
    with pytest.raises(ValueError, match="latent patch is a whole number of latents along a side, at least 1, got 0"):
        ImageAutoencoderConfig(image_size=SIZE, backbone=BACKBONES["patch"], latent_dim=4, latent_patch=0)


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_an_opened_folder_gives_the_same_latents_pictures_and_hash(tmp_path: Path, backbone: str) -> None:
    autoencoder = measured_autoencoder(backbone)
    autoencoder.save(tmp_path)
    opened = open_autoencoder(tmp_path)
    assert isinstance(opened, ImageAutoencoder)
    latents = autoencoder.encode(random_images(4), seeded(0))
    assert opened.config == autoencoder.config and opened.hash == autoencoder.hash
    assert torch.equal(opened.encode(random_images(4), seeded(0)), latents)
    assert torch.equal(opened.decode(latents), autoencoder.decode(latents))
    assert not opened.training and not any(parameter.requires_grad for parameter in opened.parameters())
    with pytest.raises(ValueError, match="of images of 16 pixels, not 32"):
        open_autoencoder(tmp_path, image_size=32)


def test_opening_draws_no_random_number(tmp_path: Path) -> None:
    tiny_autoencoder().save(tmp_path)
    before = torch.get_rng_state()
    open_autoencoder(tmp_path)
    assert torch.equal(before, torch.get_rng_state())


def test_the_hash_follows_weights_statistics_and_config() -> None:
    autoencoder = tiny_autoencoder()
    hashes = [autoencoder.hash]
    autoencoder.measure([random_images(8)])
    hashes.append(autoencoder.hash)
    with torch.no_grad():
        next(autoencoder.decoder.parameters()).view(-1)[0] += 1e-3
    hashes.append(autoencoder.hash)
    larger = ImageAutoencoder(ImageAutoencoderConfig(image_size=32, backbone=BACKBONES["patch"], latent_dim=CHANNELS))
    larger.load_state_dict(autoencoder.state_dict())
    assert len({*hashes, larger.hash}) == 4


def test_a_folder_of_the_other_kind_is_refused_in_one_line(tmp_path: Path) -> None:
    tiny_tokenizer().save(tmp_path / "vq")
    tiny_autoencoder().save(tmp_path / "kl")
    assert json.loads((tmp_path / "kl" / "config.json").read_text())["kind"] == "kl"
    with pytest.raises(ValueError, match=r"vq does not hold an image autoencoder: .* kind 'vq', not 'kl'") as first:
        open_autoencoder(tmp_path / "vq")
    with pytest.raises(ValueError, match=r"kl does not hold an image tokenizer: .* kind 'kl', not 'vq'") as second:
        ImageTokenizer.open(tmp_path / "kl")
    assert "\n" not in f"{first.value}{second.value}"


def changed(key: str, value: object) -> Callable[[Path], None]:
    """A damage: another value in config.json."""

    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, key: value}))

    return damage


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "weights cut short": cut,
    "weights missing": lambda folder: (folder / "model.safetensors").unlink(),
    "config missing": lambda folder: (folder / "config.json").unlink(),
    "config cut short": lambda folder: (folder / "config.json").write_text('{"image_size": 1'),
    "config of noise": lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\xfd"),
    "config a list": lambda folder: (folder / "config.json").write_text("[]"),
    "config of another shape": changed("latent_dim", 8),
    "config without a backbone": changed("backbone", 3),
    "config of an unknown backbone": changed("backbone", {"kind": "wavelet"}),
    "config with a quantizer for a backbone": changed("backbone", {"kind": "vq"}),
    "config of words": changed("image_size", "large"),
    "patches of nothing": changed("latent_patch", 0),
    "patches of a fraction": changed("latent_patch", 2.0),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_in_one_line_that_names_it(tmp_path: Path, damage: str) -> None:
    tiny_autoencoder().save(tmp_path / "ae")
    DAMAGES[damage](tmp_path / "ae")
    with pytest.raises(ValueError, match=r"ae does not hold an image autoencoder") as caught:
        open_autoencoder(tmp_path / "ae")
    assert "\n" not in str(caught.value)


def test_patches_of_latents_are_the_same_latents_in_bagels_order(tmp_path: Path) -> None:
    single, images = measured_autoencoder(), random_images(5)
    patched = ImageAutoencoder(replace(single.config, latent_patch=2)).eval()
    patched.load_state_dict(single.state_dict())
    patched.save(tmp_path)
    patched = open_autoencoder(tmp_path)
    assert (patched.latent_dim, patched.grid, patched.reduction) == (4 * CHANNELS, 1, 16)
    latents, expected = patched.encode(images), single.encode(images)
    assert torch.equal(latents.flatten(2).mT, latents_to_patches(expected, 2))
    assert torch.equal(patched.decode(latents), single.decode(expected))
    assert patched.hash != single.hash
    wide = images.repeat(1, 1, 2, 4)
    assert patched.encode(wide).shape == (5, 4 * CHANNELS, 2, 4)
    assert torch.equal(patched.decode(patched.encode(wide)), single.decode(single.encode(wide)))
    with pytest.raises(ValueError, match=r"multiples of 16, got \(5, 3, 24, 16\)"):
        patched.encode(images[:, :, :8].repeat(1, 1, 3, 1))
