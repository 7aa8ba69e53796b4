"""Image tokenizer: pictures to codes and back, one by one as in batches, and from its folder as from memory."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

from data_pipelines.tokenize import layout_of
from tests.oracles.pictures import BACKBONES, QUANTIZERS, SIZE, random_images, sharp_tokenizer, tiny_tokenizer
from tokenizers_vq.backbones import BackboneConfig, PatchBackboneConfig, VQGANBackboneConfig, build_backbone
from tokenizers_vq.image_tokenizer import ImageTokenizer, ImageTokenizerConfig

PAIRS = list(itertools.product(sorted(BACKBONES), sorted(QUANTIZERS)))


@pytest.mark.parametrize(("backbone", "quantizer"), PAIRS)
def test_pictures_become_codes_in_range_and_codes_become_pictures_in_range(backbone: str, quantizer: str) -> None:
    tokenizer = tiny_tokenizer(backbone, quantizer)
    codes = tokenizer.encode(random_images(5))
    number = 4 * QUANTIZERS[quantizer].codes_of_a_place
    assert codes.shape == (5, number) and codes.dtype == torch.int64
    assert int(codes.min()) >= 0 and int(codes.max()) < tokenizer.codebook_size
    images = tokenizer.decode(codes)
    assert images.shape == (5, 3, SIZE, SIZE) and images.dtype == torch.float32
    assert images.abs().max() <= 1
    assert tokenizer.layout.num_codes == number


@pytest.mark.parametrize(("backbone", "quantizer"), PAIRS)
def test_training_and_coding_give_the_same_pictures(backbone: str, quantizer: str) -> None:
    tokenizer = tiny_tokenizer(backbone, quantizer)
    images = random_images(4)
    seen = tokenizer(images)
    assert torch.equal(seen.indices, tokenizer.encode(images))
    torch.testing.assert_close(tokenizer.decode(seen.indices), seen.images.clamp(-1, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_a_batch_gives_the_same_codes_and_pictures_as_one_by_one(backbone: str) -> None:
    tokenizer = tiny_tokenizer(backbone, "fsq")
    images = random_images(7)
    codes = tokenizer.encode(images)
    assert torch.equal(codes, torch.cat([tokenizer.encode(image[None]) for image in images]))
    alone = torch.cat([tokenizer.decode(one[None]) for one in codes])
    torch.testing.assert_close(tokenizer.decode(codes), alone, rtol=0, atol=1e-5)


def test_codes_lie_in_reading_order() -> None:
    """With the patch backbone and no mixing between patches, a patch's code lies at row * columns + column."""
    tokenizer = tiny_tokenizer("patch", "fsq")
    tokenizer.encoder.blocks = torch.nn.Identity()
    base = tokenizer.encode(-torch.ones(1, 3, SIZE, SIZE))
    for row, column in itertools.product(range(2), range(2)):
        image = -torch.ones(1, 3, SIZE, SIZE)
        image[:, :, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] = random_images(1)[:, :, :8, :8] * 9
        changed = (tokenizer.encode(image) != base).flatten().nonzero().flatten().tolist()
        assert changed == [row * 2 + column]


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_every_parameter_gets_a_gradient(backbone: str) -> None:
    tokenizer = tiny_tokenizer(backbone, "vq").train()
    result = tokenizer(random_images(8))
    (result.images.square().mean() + sum(result.losses.values())).backward()
    parameters = dict(tokenizer.named_parameters())
    without = [name for name, p in parameters.items() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def wide_images(number: int) -> torch.Tensor:
    """(number, 3, 16, 24)."""
    return torch.cat([random_images(number), random_images(number, seed=1)[..., :8]], dim=3)


@pytest.mark.parametrize(("backbone", "quantizer"), PAIRS)
def test_pictures_of_other_sides_become_codes_and_pictures_of_those_sides_again(backbone: str, quantizer: str) -> None:
    tokenizer = tiny_tokenizer(backbone, quantizer)
    images = wide_images(3)
    codes = tokenizer.encode(images)
    columns = 3 * QUANTIZERS[quantizer].codes_of_a_place
    assert codes.shape == (3, 2 * columns) and tokenizer.size_of(16, 24) == (2, columns)
    decoded = tokenizer.decode(codes, (2, columns))
    assert decoded.shape == images.shape
    seen = tokenizer(images)
    assert torch.equal(seen.indices, codes)
    torch.testing.assert_close(decoded, seen.images.clamp(-1, 1), rtol=0, atol=1e-5)


def test_without_mixing_a_picture_of_any_sides_is_its_patches_in_reading_order() -> None:
    tokenizer = sharp_tokenizer()
    tokenizer.encoder.blocks = tokenizer.decoder.blocks = torch.nn.Identity()
    (image,) = wide_images(1)
    patches = [image[None, :, y : y + 8, x : x + 8] for y in (0, 8) for x in (0, 8, 16)]
    codes = torch.cat([tokenizer.encode(patch) for patch in patches], dim=1)
    assert torch.equal(tokenizer.encode(image[None]), codes) and len(codes.unique()) > 1
    decoded = tokenizer.decode(codes, (2, 3))[0]
    for code, (y, x) in zip(codes[0], itertools.product((0, 8), (0, 8, 16)), strict=True):
        alone = tokenizer.decode(code.view(1, 1), (1, 1))[0]
        torch.testing.assert_close(decoded[:, y : y + 8, x : x + 8], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_without_a_size_codes_are_those_of_the_square(backbone: str) -> None:
    tokenizer = tiny_tokenizer(backbone, "fsq")
    codes = tokenizer.encode(random_images(3))
    assert torch.equal(tokenizer.decode(codes), tokenizer.decode(codes, (2, 2)))
    assert not torch.equal(tokenizer.decode(codes), tokenizer.decode(codes, (4, 1)).reshape(3, 3, SIZE, SIZE))


@pytest.mark.parametrize(
    "shape", [(1, 3, 12, 16), (1, 3, 16, 20), (1, 1, 16, 16), (3, 16, 16), (1, 3, 0, 16), (1, 3, 16, 16, 1)]
)
def test_pictures_of_a_shape_that_is_not_cut_into_codes_are_refused_with_both_shapes(shape: tuple[int, ...]) -> None:
    expected = rf"\(B, 3, H, W\), H and W multiples of 8, got \({', '.join(map(str, shape))}\)"
    with pytest.raises(ValueError, match=expected):
        tiny_tokenizer().encode(torch.zeros(shape))


@pytest.mark.parametrize("codes", [[[0, 1, 2]], [[0, 1, 2, 3, 4]], [0, 1, 2, 3]])
def test_another_number_of_codes_is_refused(codes: list) -> None:
    with pytest.raises(ValueError, match="an image of 2 x 2 has 4 codes, got a batch of shape"):
        tiny_tokenizer().decode(torch.tensor(codes))


@pytest.mark.parametrize("size", [(2, 3), (1, 2), (-2, -2)])
def test_codes_that_do_not_fill_their_size_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"an image of {size[0]} x {size[1]} has .* codes, got .*\(1, 4\)"):
        tiny_tokenizer().decode(torch.tensor([[0, 1, 2, 3]]), size)


def test_a_place_has_all_its_codes() -> None:
    tokenizer = tiny_tokenizer(quantizer="residual")
    assert (tokenizer.layout.rows, tokenizer.layout.columns) == (2, 4)
    with pytest.raises(ValueError, match="an image of 2 x 3 has 6 codes"):
        tokenizer.decode(torch.zeros(1, 6, dtype=torch.int64), (2, 3))
    with pytest.raises(ValueError, match="several codes a place"):
        layout_of(tokenizer, 2.0)


@pytest.mark.parametrize("code", [-1, 60])
def test_a_code_that_does_not_exist_is_refused(code: int) -> None:
    with pytest.raises(ValueError, match=r"codes lie in 0 to 59"):
        tiny_tokenizer().decode(torch.tensor([[0, 1, 2, code]]))


def test_an_image_that_cannot_be_cut_into_codes_is_refused() -> None:
    with pytest.raises(ValueError, match="20 pixels cannot be cut into codes of 8"):
        ImageTokenizerConfig(image_size=20, backbone=BACKBONES["patch"], quantizer=QUANTIZERS["vq"])


def test_unknown_or_unfit_backbones_are_refused() -> None:
    class OtherConfig(BackboneConfig):
        pass

    with pytest.raises(ValueError, match="unknown backbone OtherConfig"):
        build_backbone(OtherConfig(), 4)
    with pytest.raises(ValueError, match="multiple of 16, got 24"):
        VQGANBackboneConfig(width=24)


@pytest.mark.parametrize(("backbone", "quantizer"), PAIRS)
def test_an_opened_folder_gives_the_same_codes_pictures_and_hash(tmp_path: Path, backbone: str, quantizer: str) -> None:
    tokenizer = tiny_tokenizer(backbone, quantizer)
    tokenizer.save(tmp_path)
    opened = ImageTokenizer.open(tmp_path)
    codes = tokenizer.encode(random_images(4))
    assert opened.config == tokenizer.config and opened.hash == tokenizer.hash
    assert torch.equal(opened.encode(random_images(4)), codes)
    assert torch.equal(opened.decode(codes), tokenizer.decode(codes))
    assert not opened.training and not any(parameter.requires_grad for parameter in opened.parameters())


def test_the_hash_follows_weights_and_config() -> None:
    tokenizer = tiny_tokenizer()
    before = tokenizer.hash
    with torch.no_grad():
        next(tokenizer.decoder.parameters()).view(-1)[0] += 1e-3
    assert tokenizer.hash != before
    config = ImageTokenizerConfig(
        image_size=32, backbone=tokenizer.config.backbone, quantizer=tokenizer.config.quantizer
    )
    larger = ImageTokenizer(config)
    larger.load_state_dict(tokenizer.state_dict())
    assert larger.hash != tokenizer.hash


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def scribble(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)


def other_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["backbone"]["width"] = 32
    (folder / "config.json").write_text(json.dumps(config))


def unknown_kind(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantizer"]["kind"] = "wavelet"
    (folder / "config.json").write_text(json.dumps(config))


DAMAGES = {
    "weights cut short": cut,
    "weights of noise": scribble,
    "weights missing": lambda folder: (folder / "model.safetensors").unlink(),
    "config missing": lambda folder: (folder / "config.json").unlink(),
    "config cut short": lambda folder: (folder / "config.json").write_text('{"image_size": 1'),
    "config of noise": lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\xfd"),
    "config a list": lambda folder: (folder / "config.json").write_text("[]"),
    "config of another shape": other_shape,
    "config of an unknown kind": unknown_kind,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_in_one_line_that_names_it(tmp_path: Path, damage: str) -> None:
    tiny_tokenizer().save(tmp_path / "tok")
    DAMAGES[damage](tmp_path / "tok")
    with pytest.raises(ValueError, match=r"tok does not hold an image tokenizer") as caught:
        ImageTokenizer.open(tmp_path / "tok")
    assert "\n" not in str(caught.value)


def test_the_patch_backbone_reduces_by_its_patch_and_vqgan_by_two_between_stages() -> None:
    assert PatchBackboneConfig(patch_size=4).reduction == 4
    assert VQGANBackboneConfig(multipliers=(1, 2, 4)).reduction == 4


def test_opening_a_tokenizer_draws_no_random_number(tmp_path: Path) -> None:
    tiny_tokenizer().save(tmp_path)
    before = torch.get_rng_state()
    ImageTokenizer.open(tmp_path)
    assert torch.equal(before, torch.get_rng_state())
