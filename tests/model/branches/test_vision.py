"""The vision branch: patches packed without padding, positions of any shape, and how they enter the trunk."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipelines.images import cut_patches
from tests.oracles.passes import vision_branch
from tests.oracles.tiny import tiny_model
from tokenizers_vq.media import PatchSpec
from unimodal.model import kernels
from unimodal.model.branches.base import MediaTokens
from unimodal.model.branches.vision import siglip
from unimodal.model.branches.vision.branch import VisionBranch
from unimodal.model.branches.vision.connectors import MLPConnector
from unimodal.model.branches.vision.siglip import VisionBlock
from unimodal.model.config import ModelConfig, VisionConfig
from unimodal.model.masks import dense_mask
from unimodal.model.mixture import from_dense
from unimodal.model.model import PATCHES

PATCH = PatchSpec(size=2, max_patches=12, max_side=5)
VISION = VisionConfig(
    patches=PATCH, grid_size=3, dim=16, num_layers=2, num_heads=2, hidden_dim=24, pos_embed_period=10.0
)


def branch(config: VisionConfig = VISION) -> VisionBranch:
    """All parameters different, in float64."""
    made = VisionBranch(config, 16).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            centre = 1.0 if name.endswith("norm.weight") else 0.0
            parameter.copy_(centre + 0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return made.eval()


def pixels(seed: int, rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size=(2 * rows, 2 * columns, 3), dtype=np.uint8)


def packed(*pictures: np.ndarray) -> MediaTokens:
    """Pictures one behind the other in one row, with a plain token before each."""
    patches = [cut_patches(picture, 2) for picture in pictures]
    grids = tuple((each.shape[0], each.shape[1]) for each in patches)
    standing = [[False, *[True] * (rows * columns)] for rows, columns in grids]
    index = torch.tensor([stands for picture in standing for stands in picture]).nonzero().squeeze(1)
    values = torch.from_numpy(np.concatenate([each.reshape(-1, 12) for each in patches]))
    row_col = torch.from_numpy(np.concatenate([np.argwhere(np.ones(grid)) for grid in grids]))
    return MediaTokens(index, values, row_col, grids)


SHAPES = ((3, 3), (2, 4), (1, 1), (3, 3), (4, 2), (5, 1))


def test_an_image_has_the_same_embeddings_alone_and_packed_among_others() -> None:
    made = branch()
    pictures = [pixels(seed, *shape) for seed, shape in enumerate(SHAPES)]
    together = made(packed(*pictures)).embeddings
    assert packed(*pictures).grids == SHAPES
    start = 0
    for picture, (rows, columns) in zip(pictures, SHAPES, strict=True):
        alone = made(packed(picture)).embeddings
        torch.testing.assert_close(together[start : start + rows * columns], alone, rtol=1e-12, atol=1e-12)
        start += rows * columns
    changed = [pixels(99, 3, 3), *pictures[1:]]
    again = made(packed(*changed)).embeddings
    assert torch.equal(again[9:], together[9:]), "no picture sees another"
    assert (again[:9] - together[:9]).abs().amin(1).min() > 1e-9


def test_the_encoder_is_the_slow_transformer_written_out() -> None:
    made, picture = branch(), pixels(1, 2, 4)
    encoder, connector = made.encoder, made.connector
    table = encoder.position_embedding.unflatten(0, (3, 3)).permute(2, 0, 1)[None]
    positions = F.interpolate(table, (2, 4), mode="bilinear", antialias=True)[0].permute(1, 2, 0).reshape(8, 16)
    patches = []
    for row, column in itertools.product(range(2), range(4)):
        patch = picture[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        patches.append([float(patch[y, x, c]) / 127.5 - 1 for c in range(3) for y in range(2) for x in range(2)])
    x = encoder.patch_embedding(torch.tensor(patches, dtype=torch.float64)) + positions
    for block in encoder.blocks:
        assert isinstance(block, VisionBlock)
        normed = block.attention_norm(x)
        heads = []
        for head in range(2):
            own = slice(8 * head, 8 * head + 8)
            q, k, v = (p(normed)[:, own] for p in (block.q_proj, block.k_proj, block.v_proj))
            heads.append((q @ k.T / 8**0.5).softmax(-1) @ v)
        x = x + block.o_proj(torch.cat(heads, dim=-1))
        x = x + block.down_proj(F.gelu(block.up_proj(block.mlp_norm(x)), approximate="tanh"))
    x = encoder.norm(x)
    patched = packed(picture).values.double() / 127.5 - 1
    torch.testing.assert_close(encoder(patched, ((2, 4),)), x, rtol=1e-12, atol=1e-12)
    assert isinstance(connector, MLPConnector)
    connected = connector.out_proj(F.gelu(connector.in_proj(x), approximate="tanh"))
    positions = torch.stack([connector.positions[row * 5 + column] for row in range(2) for column in range(4)]).double()
    torch.testing.assert_close(made(packed(picture)).embeddings, connected + positions, rtol=1e-12, atol=1e-12)


def test_embeddings_of_patches_replace_those_of_tokens_and_gives_every_weight_a_gradient() -> None:
    model = tiny_model(dim=16, vision=VISION)
    given = packed(pixels(0, 3, 3), pixels(1, 1, 2))
    media = {PATCHES: given}
    tokens = torch.arange(13)[None]
    spans = torch.zeros(1, 13, dtype=torch.int64)
    spans[0, 1:10], spans[0, 11:13] = 1, 2
    mask = dense_mask(torch.zeros_like(spans), None, spans)
    features = model(tokens, mask=mask, media=media)
    other = tokens.clone()
    other[0, given.index] = 5
    assert torch.equal(model(other, mask=mask, media=media), features), "ids under a picture mean nothing"
    assert (model(tokens, mask=mask) - features).abs().max() > 1e-3
    model.requires_grad_(True)
    model(tokens, mask=mask, media=media).square().sum().backward()
    dead = [name for name, p in vision_branch(model).named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []


def test_patches_take_the_understanding_expert_of_a_mixture() -> None:
    dense = tiny_model(dim=16, vision=VISION)
    media = {PATCHES: packed(pixels(0, 2, 2))}
    mixed = tiny_model(dim=16, vision=VISION, mixture=True)
    mixed.load_state_dict(from_dense(dense.state_dict()))
    tokens = torch.arange(5)[None]
    torch.testing.assert_close(mixed(tokens, media=media), dense(tokens, media=media))


def test_an_image_that_the_table_of_positions_does_not_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="an image of 6 tokens along a side does not fit this model's 5 positions"):
        branch()(packed(pixels(0, 1, 6)))


def test_no_picture_is_no_token() -> None:
    made = branch()
    nothing = made.empty(made.encoder.position_embedding)
    assert nothing.values.shape == (0, 12) and nothing.grids == ()
    inserted = made(nothing)
    assert inserted.embeddings.shape == (0, 16) and inserted.index.shape == (0,)
    inserted.embeddings.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in made.parameters()), "0, but there"


@pytest.mark.parametrize("wrong", [{"grid_size": 0}, {"num_heads": 3}, {"pos_embed_period": 1.0}, {"num_layers": 0}])
def test_a_shape_that_cannot_be_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="a ViT has sizes"):
        replace(VISION, **wrong)
    with pytest.raises(ValueError, match="at least one pixel"):
        replace(PATCH, size=0)


def test_the_config_comes_back_from_json() -> None:
    config = ModelConfig(vocab_size=24, vision=VISION)
    assert ModelConfig.from_dict(config.to_dict()) == config


def test_images_of_all_shapes_go_through_one_call_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel by its contract, slowly: the ends of the images, without a causal mask."""
    calls = []

    def slow(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, *rest: Any, window_size: tuple[int, int]) -> Tensor:
        calls.append((ends.tolist(), rest[1:], window_size))
        parts = []
        for start, end in itertools.pairwise(ends.tolist()):
            queries, keys, values = (each[start:end].transpose(0, 1) for each in (q, k, v))
            parts.append(F.scaled_dot_product_attention(queries, keys, values).transpose(0, 1))
        return torch.cat(parts)

    pictures = [pixels(0, 2, 3), pixels(1, 3, 1), pixels(2, 2, 3)]
    seeing = branch()
    expected = seeing(packed(*pictures)).embeddings
    monkeypatch.setattr(siglip, "has_flash", lambda *_: True)
    monkeypatch.setattr(kernels, "varlen_attn", slow)
    torch.testing.assert_close(seeing(packed(*pictures)).embeddings, expected, rtol=1e-12, atol=1e-12)
    assert calls == [([0, 6, 9, 15], (6, 6), (-1, -1))] * VISION.num_layers
