"""The ViT: patches packed without padding, positions of any shape, and how what it saw enters the trunk."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data_pipelines.images import cut_patches
from tests.oracles.tiny import tiny_model
from unimodal.model.config import ModelConfig, VisionConfig
from unimodal.model.masks import dense_mask
from unimodal.model.mixture import from_dense
from unimodal.model.branches.vision.siglip import PatchTokens, Seen, VisionBlock, VisionTower, no_patches, patch_tokens

VISION = VisionConfig(
    patch=2, most=12, longest=5, side=3, width=16, num_layers=2, num_heads=2, hidden_dim=24, place_period=10.0
)


def tower(config: VisionConfig = VISION) -> VisionTower:
    """All parameters different, in float64."""
    made = VisionTower(config, 16).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            centre = 1.0 if name.endswith("norm.weight") else 0.0
            parameter.copy_(centre + 0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return made.eval()


def pixels(seed: int, rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size=(2 * rows, 2 * columns, 3), dtype=np.uint8)


def packed(*pictures: np.ndarray) -> PatchTokens:
    """Pictures one behind the other in one row, with a plain token between them."""
    values, cells = [], []
    for picture in pictures:
        patches = cut_patches(picture, 2)
        values += [np.zeros((1, 12), np.uint8), patches.reshape(-1, 12)]
        cells += [np.full((1, 2), -1), np.argwhere(np.ones(patches.shape[:2]))]
    return patch_tokens(
        torch.from_numpy(np.concatenate(values))[None], torch.from_numpy(np.concatenate(cells))[None], torch.float64
    )


SHAPES = ((3, 3), (2, 4), (1, 1), (3, 3), (4, 2), (5, 1))


def test_a_picture_is_seen_alike_alone_and_packed_among_others() -> None:
    made = tower()
    pictures = [pixels(seed, *shape) for seed, shape in enumerate(SHAPES)]
    together = made(packed(*pictures))
    assert packed(*pictures).sizes == SHAPES
    start = 0
    for picture, (rows, columns) in zip(pictures, SHAPES, strict=True):
        alone = made(packed(picture)).features
        torch.testing.assert_close(together.features[start : start + rows * columns], alone, rtol=1e-12, atol=1e-12)
        start += rows * columns
    changed = [pixels(99, 3, 3), *pictures[1:]]
    again = made(packed(*changed)).features
    assert torch.equal(again[9:], together.features[9:]), "no picture sees another"
    assert (again[:9] - together.features[:9]).abs().amin(1).min() > 1e-9


def test_the_tower_is_the_slow_transformer_written_out() -> None:
    made, picture = tower(), pixels(1, 2, 4)
    table = made.position_embedding.unflatten(0, (3, 3)).permute(2, 0, 1)[None]
    positions = F.interpolate(table, (2, 4), mode="bilinear", antialias=True)[0].permute(1, 2, 0).reshape(8, 16)
    patches = []
    for row, column in itertools.product(range(2), range(4)):
        patch = picture[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        patches.append([float(patch[y, x, c]) / 127.5 - 1 for c in range(3) for y in range(2) for x in range(2)])
    x = made.patch_embedding(torch.tensor(patches, dtype=torch.float64)) + positions
    for block in made.blocks:
        assert isinstance(block, VisionBlock)
        normed = block.attention_norm(x)
        heads = []
        for head in range(2):
            own = slice(8 * head, 8 * head + 8)
            q, k, v = (p(normed)[:, own] for p in (block.q_proj, block.k_proj, block.v_proj))
            heads.append((q @ k.T / 8**0.5).softmax(-1) @ v)
        x = x + block.o_proj(torch.cat(heads, dim=-1))
        x = x + block.down_proj(F.gelu(block.up_proj(block.mlp_norm(x)), approximate="tanh"))
    x = made.norm(x)
    torch.testing.assert_close(made.features(packed(picture)), x, rtol=1e-12, atol=1e-12)
    connected = made.connector_out(F.gelu(made.connector_in(x), approximate="tanh"))
    places = torch.stack([made.places[row * 5 + column] for row in range(2) for column in range(4)]).double()
    torch.testing.assert_close(made(packed(picture)).features, connected + places, rtol=1e-12, atol=1e-12)


def test_what_was_seen_takes_the_place_of_tokens_and_gives_every_weight_a_gradient() -> None:
    model = tiny_model(dim=16, vision=VISION)
    assert model.vision is not None
    given = packed(pixels(0, 3, 3), pixels(1, 1, 2))
    tokens = torch.arange(13)[None]
    seen = model.vision(given)
    spans = torch.zeros(1, 13, dtype=torch.int64)
    spans[0, 1:10], spans[0, 11:13] = 1, 2
    mask = dense_mask(torch.zeros_like(spans), None, spans)
    features = model(tokens, mask=mask, seen=seen)
    other = tokens.clone()
    other[0, seen.index] = 5
    assert torch.equal(model(other, mask=mask, seen=seen), features), "ids under a picture mean nothing"
    assert (model(tokens, mask=mask) - features).abs().max() > 1e-3
    model.requires_grad_(True)
    model(tokens, mask=mask, seen=model.vision(given)).square().sum().backward()
    dead = [name for name, p in model.vision.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []


def test_a_mixture_reads_what_was_seen_with_the_understanding_side() -> None:
    dense = tiny_model(dim=16, vision=VISION)
    seen = dense.vision(packed(pixels(0, 2, 2)))  # pyright: ignore[reportOptionalCall]
    mixed = tiny_model(dim=16, vision=VISION, mixture=True)
    mixed.load_state_dict(from_dense(dense.state_dict()))
    tokens = torch.arange(5)[None]
    torch.testing.assert_close(mixed.features(tokens, seen=seen), dense.features(tokens, seen=seen))


def test_a_picture_that_the_table_of_places_does_not_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 5 patches along a side"):
        tower()(packed(pixels(0, 1, 6)))


def test_patches_that_were_parted_are_refused() -> None:
    values = torch.zeros(1, 4, 12, dtype=torch.uint8)
    cells = torch.tensor([[[0, 0], [0, 1], [1, 1], [-1, -1]]])
    with pytest.raises(ValueError, match="never cut"):
        patch_tokens(values, cells, torch.float32)


def test_no_picture_is_no_token() -> None:
    nothing = patch_tokens(torch.zeros(1, 4, 12, dtype=torch.uint8), torch.full((1, 4, 2), -1), torch.float64)
    made = tower()
    assert isinstance(seen := made(nothing), Seen) and seen.features.shape == (0, 16)
    seen = made(no_patches(VISION, made.position_embedding))
    seen.features.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in made.parameters()), "0, but there"


@pytest.mark.parametrize("wrong", [{"patch": 0}, {"num_heads": 3}, {"place_period": 1.0}, {"num_layers": 0}])
def test_a_shape_that_cannot_be_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="a ViT has sizes"):
        replace(VISION, **wrong)


def test_the_config_comes_back_from_json() -> None:
    config = ModelConfig(vocab_size=24, vision=VISION)
    assert ModelConfig.from_dict(config.to_dict()) == config
