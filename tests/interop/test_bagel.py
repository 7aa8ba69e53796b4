"""BAGEL: weights in the published layout open here, compute what a slow reference computes, and go back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from tests.oracles import bagel
from tests.oracles.passes import flow_branch, logits, media_at, on_table
from tests.oracles.slow_attention import spanned_layout, visible_with_spans
from tests.oracles.tiny import tiny_model
from tokenizers_vq.latent_patches import latents_to_patches, patches_to_latents
from unimodal.interop.architectures.bagel import open_bagel, write_bagel
from unimodal.interop.architectures.bagel_names import bagel_names
from unimodal.interop.importing import import_hf
from unimodal.model.branches.base import MediaTokens
from unimodal.model.config import FlowConfig, QKNormConfig, RopeConfig, RopeScaling
from unimodal.model.context import LayerContext, Route
from unimodal.model.masks import as_bias, dense_mask
from unimodal.model.mixture import GENERATION, UNDERSTANDING
from unimodal.model.model import LATENTS, VELOCITY

LENGTH = 14
CLOSE = 1e-11
PLACES = "latent_pos_embed.pos_embed"


class Row:
    """One row of random documents, images among them, and a random choice of which tokens are latents."""

    def __init__(self, seed: int) -> None:
        random, generator = Random(seed), torch.Generator().manual_seed(seed)
        documents, branches, spans = spanned_layout(random, LENGTH)
        self.seen = visible_with_spans(documents, branches, spans)
        self.mask = dense_mask(*(torch.tensor([part]) for part in (documents, branches, spans)))
        self.positions = [random.randrange(40) for _ in range(LENGTH)]  # tokens of an image share one
        share = random.choice((0.0, 0.3, 0.5, 0.7, 1.0))
        self.is_latent = [random.random() < share for _ in range(LENGTH)]
        self.tokens = [random.randrange(30) for _ in range(LENGTH)]
        count = sum(self.is_latent)
        self.latents = torch.randn(count, bagel.CHANNELS, generator=generator, dtype=torch.float64)
        self.times = [random.choice((0.0, random.random())) for _ in range(count)]
        self.places = [random.randrange(bagel.SIDE**2) for _ in range(count)]

    @property
    def media(self) -> MediaTokens:
        standing, times = torch.tensor([self.is_latent]), torch.tensor(self.times, dtype=torch.float64)
        places = torch.tensor(self.places, dtype=torch.int64)
        return media_at(standing, self.latents, on_table(places, bagel.SIDE), times)

    def embedded(self, tensors: bagel.Tensors) -> Tensor:
        rows, latent = [], 0
        for token, is_latent in zip(self.tokens, self.is_latent, strict=True):
            if is_latent:
                place = self.places[latent]
                rows.append(bagel.latent_slowly(tensors, self.latents[latent], self.times[latent], place))
                latent += 1
            else:
                rows.append(tensors["language_model.model.embed_tokens.weight"][token])
        return torch.stack(rows)


@pytest.fixture(scope="module")
def tensors() -> bagel.Tensors:
    return bagel.random_bagel()


@pytest.fixture(scope="module")
def folder(tensors: bagel.Tensors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bagel.write_folder(tmp_path_factory.mktemp("bagel") / "theirs", tensors)


@pytest.mark.parametrize("layer", range(bagel.LAYERS))
def test_a_layer_is_the_slow_reference_for_random_routings(layer: int, tensors: bagel.Tensors, folder: Path) -> None:
    model = open_bagel(folder).model
    for seed in range(12):
        row = Row(seed)
        x = torch.randn(LENGTH, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        positions = torch.tensor([row.positions])
        rotation = model.trunk.rotary(positions, x.dtype)
        block, bias = model.trunk.blocks[layer], as_bias(row.mask, x.dtype)
        context = LayerContext(rotation, bias, None, positions, Route.of(row.media.index, LENGTH))
        found = block(x[None], context)[0]
        expected = bagel.layer_slowly(tensors, layer, x, row.positions, row.seen, row.is_latent)
        torch.testing.assert_close(found, expected, rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("seed", range(6))
def test_the_model_answers_as_the_slow_reference_from_ids_and_latents_to_logits_and_velocities(
    seed: int, tensors: bagel.Tensors, folder: Path
) -> None:
    row, model = Row(seed), open_bagel(folder).model
    media = {LATENTS: row.media}
    features = model(torch.tensor([row.tokens]), torch.tensor([row.positions]), row.mask, media=media)[0]
    expected = bagel.answers_slowly(tensors, row.embedded(tensors), row.positions, row.seen, row.is_latent)
    for token, is_latent in enumerate(row.is_latent):
        answer = model.heads[VELOCITY] if is_latent else model.token_head
        torch.testing.assert_close(answer(features[token]), expected[token], rtol=CLOSE, atol=CLOSE)


def test_text_alone_gives_the_logits_of_a_qwen_with_the_same_norms_and_biases(
    tensors: bagel.Tensors, folder: Path
) -> None:
    """Their Qwen3 is BAGEL's understanding side, but for a bias after attention, which is zero here."""
    fields = {name: value for name, value in bagel.CONFIG.items() if name not in ("model_type", "architectures")}
    theirs = Qwen3ForCausalLM(Qwen3Config(**fields, head_dim=bagel.WIDTH, attention_bias=True)).double().eval()
    inside = "language_model."
    weights = {
        name.removeprefix(inside): tensor
        for name, tensor in tensors.items()
        if name.startswith(inside) and "_moe_gen" not in name
    }
    for layer in range(bagel.LAYERS):
        weights[f"model.layers.{layer}.self_attn.o_proj.bias"] = torch.zeros(32, dtype=torch.float64)
    theirs.load_state_dict(weights)
    ids = torch.randint(30, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(logits(open_bagel(folder).model, ids), theirs(ids).logits, rtol=0, atol=5e-5)


def test_the_config_is_read_from_theirs_and_from_the_shapes(folder: Path) -> None:
    config = open_bagel(folder).model.config
    assert config.flow == FlowConfig(latent_dim=12, grid_size=5, time_channels=16)
    trunk = config.trunk
    assert trunk.qk_norm == QKNormConfig(kind="rms", eps=1e-3)
    assert (trunk.mixture, trunk.qkv_bias, trunk.num_heads, trunk.num_kv_heads) == (True, True, 4, 2)
    assert (trunk.rope.theta, trunk.norm_eps, trunk.max_length, trunk.dropout) == (700.0, 1e-3, 64, 0.0)


def test_every_tensor_has_one_place_and_those_of_vision_are_named(tensors: bagel.Tensors, folder: Path) -> None:
    opened = open_bagel(folder)
    assert opened.skipped == tuple(sorted(bagel.VISION))
    table, state = bagel_names(opened.model.config.trunk), opened.model.state_dict()
    assert len(set(table.values())) == len(table)
    assert set(table) == set(state) and set(table.values()) == set(bagel.published_shapes())
    assert {*table.values(), *opened.skipped, PLACES} == set(tensors)
    for ours, theirs in table.items():
        assert torch.equal(state[ours], tensors[theirs]), theirs
        assert (GENERATION in ours) == ("_moe_gen" in theirs)
        assert UNDERSTANDING not in ours or ours.replace(UNDERSTANDING, GENERATION) in table


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_it_goes_back_with_the_bits_of_every_tensor_and_opens_again(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = bagel.random_bagel(dtype)
    opened = open_bagel(bagel.write_folder(tmp_path / "theirs", tensors))
    write_bagel(opened.model, tmp_path / "back")
    back = load_file(tmp_path / "back" / "ema.safetensors")
    assert set(back) == set(tensors) - set(bagel.VISION)
    step = torch.finfo(dtype).eps if dtype != torch.float64 else 1e-6
    for name, tensor in back.items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, tensors[name]) or (
            name == PLACES and (tensor.double() - tensors[name].double()).abs().max() <= step
        ), name
    again = open_bagel(tmp_path / "back")
    assert again.model.config == opened.model.config and again.skipped == ()


def test_the_config_that_is_written_has_their_words(folder: Path, tmp_path: Path) -> None:
    write_bagel(open_bagel(folder).model, tmp_path / "back")
    written = json.loads((tmp_path / "back" / "llm_config.json").read_text())
    shared = set(bagel.CONFIG) - {"architectures", "sliding_window"}
    assert {name: written[name] for name in shared} == {name: bagel.CONFIG[name] for name in shared}
    assert (written["layer_module"], written["qk_norm"]) == ("Qwen2MoTDecoderLayer", True)


def test_a_checkpoint_without_its_table_opens_with_the_side_that_is_said(tmp_path: Path) -> None:
    folder = bagel.write_folder(tmp_path / "theirs", bagel.random_bagel(places=False))
    with pytest.raises(ValueError, match="not stored: say the side"):
        open_bagel(folder)
    model = open_bagel(folder, side=7).model
    assert flow_branch(model).positions.shape == (49, 32)


def test_a_file_of_another_name_and_an_untouched_random_state(folder: Path, tmp_path: Path) -> None:
    bagel.write_folder(tmp_path / "theirs", bagel.random_bagel(seed=1))
    (tmp_path / "theirs" / "ema.safetensors").rename(tmp_path / "theirs" / "model.safetensors")
    before = torch.random.get_rng_state()
    other = open_bagel(tmp_path / "theirs", "model.safetensors").model
    assert torch.equal(torch.random.get_rng_state(), before) and not other.training
    assert not torch.equal(other.token_head.weight, open_bagel(folder).model.token_head.weight)


def configured(**fields: Any) -> Callable[[Path], None]:
    """Other fields in the config; None takes one away."""

    def damage(folder: Path) -> None:
        kept = {name: value for name, value in {**bagel.CONFIG, **fields}.items() if value is not None}
        (folder / "llm_config.json").write_text(json.dumps(kept))

    return damage


def weighted(name: str, change: Callable[[Tensor], Tensor] | None) -> Callable[[Path], None]:
    """A tensor changed, or one less; a new one is changed from 32 ones."""

    def damage(folder: Path) -> None:
        weights = load_file(folder / "ema.safetensors")
        old = weights.pop(name, torch.ones(32, dtype=torch.float64))
        save_file({**weights, **({name: change(old)} if change else {})}, folder / "ema.safetensors")

    return damage


def moved(folder: Path) -> None:
    """A pickle under the name of the weights."""
    torch.save({"weight": torch.ones(2)}, folder / "ema.safetensors")


def rows_first(table: Tensor) -> Tensor:
    """The same places with the row in the first half."""
    return table.view(bagel.SIDE, bagel.SIDE, -1).transpose(0, 1).flatten(0, 1).contiguous()


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


Q_GEN = "language_model.model.layers.1.self_attn.q_norm_moe_gen.weight"
REFUSALS: list[tuple[str, Callable[[Path], Any], str]] = [
    ("no config", without("llm_config.json"), "llm_config.json is missing: give a folder in the layout"),
    ("broken config", lambda f: (f / "llm_config.json").write_text("{"), "cannot be read"),
    ("other type", configured(model_type="llama"), "is of model type 'llama', BAGEL's is 'qwen2'"),
    ("lost field", configured(rms_norm_eps=None), "lacks 1 fields that are needed, the first is rms_norm_eps"),
    ("lost theta", configured(rope_theta=None), "the first is rope_theta"),
    ("odd field", configured(hidden_size="wide"), "is not a config of qwen2"),
    ("rope scaling", configured(rope_scaling={"type": "linear", "factor": 2.0}), "are scaled (linear)"),
    ("sliding window", configured(use_sliding_window=True), "a sliding window"),
    ("activation", configured(hidden_act="gelu"), "'gelu', ours is silu"),
    ("head width", configured(head_dim=16), "head_dim is 16, ours is hidden_size / num_attention_heads = 8"),
    ("more layers", configured(num_hidden_layers=3), "lacks 28 weights of a BAGEL"),
    ("fewer layers", configured(num_hidden_layers=1), "has not 28 of these weights"),
    ("other width", configured(hidden_size=64), "its config says (30, 64)"),
    ("other vocabulary", configured(vocab_size=31), "embed_tokens.weight has shape (30, 32), its config says (31, 32)"),
    ("heads", configured(num_key_value_heads=3), "kv heads must divide heads"),
    ("no weights", without("ema.safetensors"), "ema.safetensors cannot be read as safetensors"),
    ("pickle", moved, "ema.safetensors cannot be read as safetensors"),
    ("dense", weighted(Q_GEN, None), f"lacks 1 weights of a BAGEL, the first is {Q_GEN}"),
    ("extra", weighted("vae2llm.scale", torch.clone), "has not 1 of these weights, the first is vae2llm.scale"),
    ("other shape", weighted(Q_GEN, lambda x: x[:4].clone()), "has shape (4,), its config says (8,)"),
    ("flat projection", weighted("vae2llm.weight", lambda x: x.flatten()), "a projection has rows and columns"),
    ("whole numbers", weighted(Q_GEN, lambda x: x.to(torch.int8)), "is of type torch.int8"),
    ("two types", weighted(Q_GEN, lambda x: x.float()), "several types (torch.float32, torch.float64)"),
    ("transposed places", weighted(PLACES, rows_first), "from the sines and cosines of its side, column first"),
    ("trained places", weighted(PLACES, lambda x: x + 1e-4), "differs by 0.0001 from the sines"),
    ("broken places", weighted(PLACES, lambda x: x * float("nan")), "differs by nan from the sines"),
    ("odd table", weighted(PLACES, lambda x: x[:20].clone()), "is not a table of side * side places"),
    ("narrow table", weighted(PLACES, lambda x: x[:, :8].clone()), "has shape (25, 8), its config says (25, 32)"),
]


@pytest.mark.parametrize(("damage", "reason"), [case[1:] for case in REFUSALS], ids=[case[0] for case in REFUSALS])
def test_what_cannot_be_opened_is_refused_in_one_line(
    damage: Callable[[Path], Any], reason: str, tensors: bagel.Tensors, tmp_path: Path
) -> None:
    folder = bagel.write_folder(tmp_path / "theirs", tensors)
    damage(folder)
    with pytest.raises(ValueError) as error:
        open_bagel(folder)
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_another_side_than_the_stored_one_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="a table of side 5, not 6"):
        open_bagel(folder, side=6)
    open_bagel(folder, side=5)


FLOW = FlowConfig(latent_dim=4, grid_size=3, time_channels=8)
RMS = QKNormConfig(kind="rms")


@pytest.mark.parametrize(
    "shape",
    [
        {"qkv_bias": True, "qk_norm": RMS, "mixture": True},
        {"qkv_bias": True, "qk_norm": RMS, "flow": FLOW},
        {"qk_norm": RMS, "mixture": True, "flow": FLOW},
        {"qkv_bias": True, "mixture": True, "flow": FLOW},
        {"qkv_bias": True, "qk_norm": QKNormConfig(kind="rms", eps=1e-6), "mixture": True, "flow": FLOW},
        {"qkv_bias": True, "qk_norm": RMS, "mixture": True, "flow": FLOW, "head_dim": 4},
        {"qkv_bias": True, "qk_norm": RMS, "mixture": True, "flow": FLOW, "tied_head": True},
        {"qkv_bias": True, "qk_norm": RMS, "mixture": True, "flow": FLOW, "rope": RopeConfig(scaling=RopeScaling())},
        {"qkv_bias": True, "qk_norm": RMS, "mixture": True, "flow": replace(FLOW, axial_rope_max=1.0)},
    ],
)
def test_a_model_that_the_layout_cannot_hold_is_not_written(shape: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="BAGEL has a mixture with a flow branch") as error:
        write_bagel(tiny_model(**shape), tmp_path / "theirs")
    assert "\n" not in str(error.value) and not (tmp_path / "theirs").exists()


def test_a_model_of_ours_is_written_and_opens_as_it_was(tmp_path: Path) -> None:
    ours = tiny_model(qkv_bias=True, qk_norm=RMS, mixture=True, flow=FLOW)
    write_bagel(ours, tmp_path / "theirs")
    back = open_bagel(tmp_path / "theirs").model
    assert back.config == ours.config
    for name, tensor in ours.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    with pytest.raises(ValueError, match="not an empty folder"):
        write_bagel(ours, tmp_path / "theirs")


def test_import_hf_points_to_the_function(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="open it with `open_bagel`"):
        import_hf(folder, tmp_path / "ours")


@pytest.mark.parametrize(("rows", "columns", "patch"), [(4, 6, 2), (2, 2, 2), (6, 3, 3), (3, 5, 1)])
def test_patches_are_in_bagels_order_and_go_back(rows: int, columns: int, patch: int) -> None:
    latents = torch.randn(2, 5, rows, columns)
    h, w = rows // patch, columns // patch
    patches = latents_to_patches(latents, patch)
    for image, found in zip(latents, patches, strict=True):
        cut = image.reshape(5, h, patch, w, patch)
        assert torch.equal(found, torch.einsum("chpwq->hwpqc", cut).reshape(h * w, patch * patch * 5))
    assert torch.equal(patches_to_latents(patches, h, w, patch), latents)
    cut = patches.reshape(2, h, w, patch, patch, 5)
    assert torch.equal(torch.einsum("nhwpqc->nchpwq", cut).reshape(latents.shape), latents)


def test_latents_that_patches_do_not_divide_and_patches_of_another_image_are_refused() -> None:
    with pytest.raises(ValueError, match="3x4 latents cannot be cut into patches of 2x2"):
        latents_to_patches(torch.zeros(5, 3, 4))
    for patches, rows in ((torch.zeros(6, 20), 3), (torch.zeros(6, 18), 2)):
        with pytest.raises(ValueError, match="are not"):
            patches_to_latents(patches, rows, 3)
