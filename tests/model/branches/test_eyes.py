"""MoonViT, merged patches and the resampler against slow forms that share no code with them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from data_pipelines.images import cut_patches
from tokenizers_vq.folded_patches import as_wide, fold_patches, unfold_patches
from tokenizers_vq.media import PatchSpec
from unimodal.interop.architectures.vision import load_vit, vit_config
from unimodal.model.branches.base import MediaTokens, grid_positions
from unimodal.model.branches.vision.branch import VisionBranch
from unimodal.model.branches.vision.moonvit import MoonViTEncoder, pair_rotation
from unimodal.model.branches.vision.resampler import Resampler
from unimodal.model.branches.vision.siglip import SiglipEncoder, rotate_pairs
from unimodal.model.config import VisionConfig

DIM = 8
"""Width of the trunk."""
SHAPES = [(2, 3), (1, 5), (4, 1), (3, 3), (1, 1)]
"""Rows and columns of tokens."""


def config(**changes: Any) -> VisionConfig:
    """Patches of 4 pixels, two along a side of a token."""
    shape: dict[str, Any] = {"dim": 16, "num_layers": 2, "num_heads": 2, "hidden_dim": 24, "grid_size": 6}
    more = {"patches": PatchSpec(size=8), "merge": 2, "encoder": "moonvit", "connector": "pixel_shuffle"}
    return VisionConfig(**{**shape, **more, **changes})


def shaken(module: Any, seed: int = 0) -> Any:
    """Random weights, norms too, in float64."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    module.init_weights()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module.requires_grad_(False)


def picture(rows: int, columns: int, size: int = 8, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed + 10 * rows + columns)
    return random.integers(0, 256, (rows * size, columns * size, 3), dtype=np.uint8)


def tokens_of(*pictures: np.ndarray, size: int = 8) -> MediaTokens:
    cut = [cut_patches(each, size) for each in pictures]
    values = torch.from_numpy(np.concatenate([each.reshape(-1, each.shape[-1]) for each in cut]))
    grids = tuple((each.shape[0], each.shape[1]) for each in cut)
    return MediaTokens(torch.arange(len(values)), values, torch.cat([grid_positions(*grid) for grid in grids]), grids)


def slow_moonvit(weights: dict[str, Tensor], pixels: np.ndarray, patch: int, heads: int, side: int) -> Tensor:
    """Features (rows, columns, E) of one picture, patch by patch, from weights under Kimi-VL's names."""
    rows, columns = pixels.shape[0] // patch, pixels.shape[1] // patch
    image = torch.from_numpy(pixels).double().permute(2, 0, 1) / 127.5 - 1
    x = F.conv2d(image[None], weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=patch)[0]
    table = weights["patch_embed.pos_emb.weight"].permute(2, 0, 1)[None]
    if (rows, columns) != (side, side):
        table = F.interpolate(table, (rows, columns), mode="bicubic")
    x = (x + table[0]).flatten(1).T
    width = x.shape[1] // heads
    turns = np.zeros((rows * columns, width // 2), dtype=np.complex128)
    for place in range(rows * columns):
        for pair in range(width // 2):
            moved = place % columns if pair % 2 == 0 else place // columns
            angle = moved * 10_000.0 ** -(4 * (pair // 2) / width)
            turns[place, pair] = complex(math.cos(angle), math.sin(angle))
    turned = torch.from_numpy(turns)
    layers = len([name for name in weights if name.endswith("wqkv.weight")])
    for layer in range(layers):
        part = {
            name.removeprefix(f"encoder.blocks.{layer}."): tensor
            for name, tensor in weights.items()
            if name.startswith(f"encoder.blocks.{layer}.")
        }
        normed = F.layer_norm(x, x.shape[1:], part["norm0.weight"], part["norm0.bias"], 1e-5)
        q, k, v = F.linear(normed, part["wqkv.weight"], part["wqkv.bias"]).view(-1, 3, heads, width).unbind(1)
        pairs = [each.reshape(-1, heads, width // 2, 2).contiguous() for each in (q, k)]
        q, k = (torch.view_as_real(torch.view_as_complex(each) * turned[:, None]).flatten(-2) for each in pairs)
        found = [(q[:, h] @ k[:, h].T / width**0.5).softmax(-1) @ v[:, h] for h in range(heads)]
        x = x + F.linear(torch.cat(found, -1), part["wo.weight"], part["wo.bias"])
        normed = F.layer_norm(x, x.shape[1:], part["norm1.weight"], part["norm1.bias"], 1e-5)
        hidden = F.gelu(F.linear(normed, part["mlp.fc0.weight"], part["mlp.fc0.bias"]), approximate="tanh")
        x = x + F.linear(hidden, part["mlp.fc1.weight"], part["mlp.fc1.bias"])
    norm = (weights["encoder.final_layernorm.weight"], weights["encoder.final_layernorm.bias"])
    return F.layer_norm(x, x.shape[1:], *norm, 1e-5).view(rows, columns, -1)


def slow_projector(weights: dict[str, Tensor], features: Tensor) -> Tensor:
    """Kimi-VL's: neighbours in twos, joined, two layers."""
    normed = F.layer_norm(features, features.shape[2:], weights["pre_norm.weight"], weights["pre_norm.bias"], 1e-5)
    rows = []
    for row in range(0, features.shape[0], 2):
        for column in range(0, features.shape[1], 2):
            joined = torch.cat([normed[row + a, column + b] for a in range(2) for b in range(2)])
            hidden = F.gelu(F.linear(joined, weights["linear_1.weight"], weights["linear_1.bias"]))
            rows.append(F.linear(hidden, weights["linear_2.weight"], weights["linear_2.bias"]))
    return torch.stack(rows)


@pytest.fixture(scope="module")
def kimi(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor], dict[str, Tensor]]:
    """A folder as Kimi-VL's checkpoints name things, with its tower's and its projector's weights."""
    folder = tmp_path_factory.mktemp("kimi")
    vision = {"model_type": "moonvit", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 2, "patch_size": 4, "init_pos_emb_height": 6, "init_pos_emb_width": 6}
    (folder / "config.json").write_text(json.dumps({"model_type": "kimi_vl", "vision_config": vision}))
    generator = torch.Generator().manual_seed(3)

    def some(*shape: int) -> Tensor:
        return 0.4 * torch.randn(shape, generator=generator, dtype=torch.float64)

    tower = {"patch_embed.proj.weight": some(16, 3, 4, 4), "patch_embed.proj.bias": some(16)}
    tower["patch_embed.pos_emb.weight"] = some(6, 6, 16)
    sizes = {"wqkv": (48, 16), "wo": (16, 16), "mlp.fc0": (24, 16), "mlp.fc1": (16, 24)}
    for layer in range(2):
        for name, (out, into) in sizes.items():
            tower |= {f"encoder.blocks.{layer}.{name}.weight": some(out, into)}
            tower |= {f"encoder.blocks.{layer}.{name}.bias": some(out)}
        for name in ("norm0", "norm1"):
            tower |= {f"encoder.blocks.{layer}.{name}.{kind}": 1 + some(16) for kind in ("weight", "bias")}
    tower |= {f"encoder.final_layernorm.{kind}": 1 + some(16) for kind in ("weight", "bias")}
    projector = {f"pre_norm.{kind}": 1 + some(16) for kind in ("weight", "bias")}
    projector |= {"linear_1.weight": some(64, 64), "linear_1.bias": some(64)}
    projector |= {"linear_2.weight": some(DIM, 64), "linear_2.bias": some(DIM)}
    named = {f"vision_tower.{name}": x for name, x in tower.items()}
    named |= {f"multi_modal_projector.{name}": x for name, x in projector.items()}
    save_file({name: tensor.contiguous() for name, tensor in named.items()}, folder / "model.safetensors")
    return folder, tower, projector


@pytest.mark.parametrize("shape", [*SHAPES, (3, 3)], ids=str)
def test_a_kimi_folder_gives_the_features_of_a_slow_form(
    shape: tuple[int, int], kimi: tuple[Path, dict[str, Tensor], dict[str, Tensor]]
) -> None:
    folder, tower, projector = kimi
    found = vit_config(folder, PatchSpec(size=8), connector="pixel_shuffle")
    branch = VisionBranch(found, DIM).double().eval().requires_grad_(False)
    assert len(load_vit(branch, folder)) == len(list(branch.named_parameters()))
    pixels = picture(*shape)
    wanted = slow_projector(projector, slow_moonvit(tower, pixels, 4, 2, 6))
    torch.testing.assert_close(branch(tokens_of(pixels)).embeddings, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("encoder", ["siglip", "moonvit"])
@pytest.mark.parametrize("connector", ["mlp", "pixel_shuffle"])
@pytest.mark.parametrize("merge", [1, 2, 4])
def test_packed_images_are_what_each_is_alone(encoder: Any, connector: Any, merge: int) -> None:
    branch = shaken(VisionBranch(config(encoder=encoder, connector=connector, merge=merge), DIM))
    pictures = [picture(*shape) for shape in SHAPES]
    together = branch(tokens_of(*pictures)).embeddings
    alone = torch.cat([branch(tokens_of(each)).embeddings for each in pictures])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
    assert branch(branch.empty(torch.zeros((), dtype=torch.float64))).embeddings.shape == (0, DIM)


def test_patches_of_a_token_are_those_of_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder gets the picture's own small patches row by row, and a token its own four back."""
    branch, given = shaken(VisionBranch(config(), DIM)), []

    def noted(values: Tensor, grids: Any) -> Tensor:
        given.append((values, grids))
        return values[:, :16]

    monkeypatch.setattr(branch.encoder, "forward", noted)
    monkeypatch.setattr(branch.connector, "forward", lambda features, media: features)
    pictures = [picture(2, 3), picture(1, 4)]
    out = branch(tokens_of(*pictures)).embeddings
    small = np.concatenate([cut_patches(each, 4).reshape(-1, 48) for each in pictures])
    (values, grids), wanted = given[0], torch.from_numpy(small).double() / 127.5 - 1
    assert torch.equal(values, wanted) and grids == ((4, 6), (2, 8))
    of_first = [wanted[place, :16] for place in (0, 1, 6, 7)]
    assert torch.equal(out[0], torch.cat(of_first))
    of_last = [wanted[24 + place, :16] for place in (6, 7, 14, 15)]
    assert torch.equal(out[-1], torch.cat(of_last))


def test_a_table_of_the_images_own_shape_is_not_touched() -> None:
    for kind in (SiglipEncoder, MoonViTEncoder):
        encoder = shaken(kind(config(merge=1, connector="mlp")))
        assert torch.equal(encoder._positions(((6, 6),)), encoder.position_embedding)
        assert not torch.equal(encoder._positions(((4, 9),)), encoder.position_embedding)


def test_scores_depend_on_how_far_patches_are_apart_in_both_axes() -> None:
    one, other = torch.randn(2, 1, 1, 16, dtype=torch.float64)

    def score(first: tuple[int, int], second: tuple[int, int]) -> float:
        turned = [
            rotate_pairs(x, pair_rotation(torch.tensor([place]), 16, torch.float64))
            for x, place in ((one, first), (other, second))
        ]
        return float((turned[0] * turned[1]).sum())

    near = score((1, 2), (4, 3))
    assert score((6, 7), (9, 8)) == pytest.approx(near, abs=1e-12)
    assert score((1, 2), (4, 4)) != pytest.approx(near, abs=1e-6)
    assert score((1, 2), (5, 3)) != pytest.approx(near, abs=1e-6)
    column = pair_rotation(torch.tensor([[0, 5]]), 16, torch.float64)[1]
    assert column[0, 0, 0] != 0 and column[0, 0, 1] == 0, "the column turns the even pairs"


# -- the resampler

SAMPLED = PatchSpec(size=4, tokens=4)


def resampler() -> Resampler:
    return shaken(Resampler(config(patches=SAMPLED, merge=1, connector="resampler"), DIM))


@pytest.mark.parametrize("grid", [(2, 2), (3, 5), (1, 7), (6, 1)], ids=str)
def test_the_resampler_is_attention_of_torch_over_keys_with_positions(grid: tuple[int, int]) -> None:
    made, features = resampler(), torch.randn(grid[0] * grid[1], 16, dtype=torch.float64)
    theirs = nn.MultiheadAttention(DIM, made.num_heads, batch_first=True).double()
    projections = (made.q_proj, made.k_proj, made.v_proj)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([each.weight for each in projections]))
        theirs.in_proj_bias.copy_(torch.cat([each.bias for each in projections]))
        theirs.out_proj.weight.copy_(made.o_proj.weight)
        theirs.out_proj.bias.copy_(made.o_proj.bias)
    values = F.layer_norm(features @ made.kv_proj.weight.T, (DIM,), made.key_norm.weight, made.key_norm.bias, 1e-6)
    table = made.positions.view(2, 2, DIM).permute(2, 0, 1)[None]
    resized = table if grid == (2, 2) else F.interpolate(table, grid, mode="bicubic")
    keys = values + resized[0].permute(1, 2, 0).reshape(-1, DIM)
    norm = (made.query_norm.weight, made.query_norm.bias)
    asked = F.layer_norm(made.queries.weight, (DIM,), *norm, 1e-6) + made.positions
    mixed = theirs(asked[None], keys[None], values[None])[0][0]
    wanted = F.layer_norm(mixed, (DIM,), made.out_norm.weight, made.out_norm.bias, 1e-6) @ made.out_proj.weight.T
    torch.testing.assert_close(made(features, (grid,)), wanted.detach(), rtol=0, atol=1e-10)


def test_patches_in_another_order_with_their_positions_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    made, features = resampler(), torch.randn(15, 16, dtype=torch.float64)
    wanted, positions, order = made(features, ((3, 5),)), made.resized(((3, 5),)), torch.randperm(15)
    monkeypatch.setattr(made, "resized", lambda grids: positions[order])
    torch.testing.assert_close(made(features[order], ((3, 5),)), wanted, rtol=0, atol=1e-12)
    monkeypatch.setattr(made, "resized", lambda grids: positions)
    assert not torch.allclose(made(features[order], ((3, 5),)), wanted)
    monkeypatch.setattr(made, "resized", lambda grids: torch.zeros_like(positions))
    without = made(features, ((3, 5),))
    torch.testing.assert_close(made(features[order], ((3, 5),)), without, rtol=0, atol=1e-12)


def test_patches_shared_by_tokens_come_out_again() -> None:
    images = [cut_patches(picture(*shape, size=4), 4) for shape in [(3, 5), (1, 1), (2, 2), (1, 9)]]
    folded = [fold_patches(image, 4) for image in images]
    assert [each.shape[:2] for each in folded] == [(1, 4)] * 4
    wide = torch.from_numpy(np.concatenate(as_wide([each[0] for each in folded])))
    values, grids = unfold_patches(wide, 4, 48)
    assert grids == ((3, 5), (1, 1), (2, 2), (1, 9))
    assert torch.equal(values, torch.from_numpy(np.concatenate([each.reshape(-1, 48) for each in images])))


def test_a_branch_resamples_any_image_to_its_number_of_tokens() -> None:
    shape = config(patches=SAMPLED, merge=1, connector="resampler")
    branch = shaken(VisionBranch(shape, DIM))
    pictures = [cut_patches(picture(*grid, size=4), 4) for grid in [(3, 5), (1, 1), (2, 6)]]

    def seen(*chosen: np.ndarray) -> Tensor:
        wide = as_wide([fold_patches(each, 4)[0] for each in chosen])
        values = torch.from_numpy(np.concatenate(wide))
        places = torch.cat([grid_positions(1, 4) for _ in chosen])
        return branch(MediaTokens(torch.arange(len(values)), values, places, ((1, 4),) * len(chosen))).embeddings

    together = seen(*pictures)
    assert together.shape == (12, DIM)
    torch.testing.assert_close(together, torch.cat([seen(each) for each in pictures]), rtol=0, atol=1e-12)
    assert branch(branch.empty(torch.zeros((), dtype=torch.float64))).embeddings.shape == (0, DIM)


def test_the_number_of_tokens_is_known_before_an_image_is_read() -> None:
    spec = PatchSpec(size=4, max_patches=64, tokens=16)
    assert {spec.grid(height, width) for height, width in [(8, 8), (400, 3), (1000, 900)]} == {(1, 16)}
    assert spec.patch_grid(8, 8) == PatchSpec(size=4, max_patches=64).grid(8, 8) == (2, 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"merge": 3},
        {"encoder": "clip"},
        {"connector": "conv"},
        {"connector": "resampler"},
        {"patches": SAMPLED, "merge": 1},
        {"dim": 12},
    ],
    ids=str,
)
def test_eyes_that_cannot_be_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as error:
        config(**changes)
    assert "\n" not in str(error.value)


def test_a_folder_with_patches_of_another_size_is_refused_with_both(
    kimi: tuple[Path, dict[str, Tensor], dict[str, Tensor]],
) -> None:
    with pytest.raises(ValueError, match="takes patches of 4 pixels, 2 along a side of a token, the data has 12"):
        vit_config(kimi[0], PatchSpec(size=12))
