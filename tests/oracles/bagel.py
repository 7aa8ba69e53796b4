"""BAGEL small and slow: a random checkpoint with the published names written out, and its decoder token by token."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.oracles.slow_attention import attend_slowly, rotate_slowly

# Shapes: T tokens of one row, D width, H query heads, K key/value heads, W head width, C channels of a latent.

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": 30,
    "hidden_size": 32,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-3,
    "rope_theta": 700.0,
    "hidden_act": "silu",
    "sliding_window": 131072,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
}
"""As published but for the sizes, and for an eps that is large enough to be seen."""
LAYERS, HEADS, KV_HEADS, WIDTH = 2, 4, 2, 8
EPS, THETA = 1e-3, 700.0
SIDE, CHANNELS, WAVES = 5, 12, 16
VISION = {
    "vit_model.vision_model.embeddings.patch_embedding.weight": (6, 9),
    "vit_model.vision_model.encoder.layers.0.layer_norm1.weight": (6,),
    "connector.fc1.weight": (32, 6),
    "connector.fc2.bias": (32,),
    "vit_pos_embed.pos_embed": (16, 32),
}

Tensors = dict[str, Tensor]


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of such a model, vision and the table of places left aside."""
    shapes: dict[str, tuple[int, ...]] = {
        "language_model.model.embed_tokens.weight": (30, 32),
        "language_model.model.norm.weight": (32,),
        "language_model.model.norm_moe_gen.weight": (32,),
        "language_model.lm_head.weight": (30, 32),
        "vae2llm.weight": (32, CHANNELS),
        "vae2llm.bias": (32,),
        "llm2vae.weight": (CHANNELS, 32),
        "llm2vae.bias": (CHANNELS,),
        "time_embedder.mlp.0.weight": (32, WAVES),
        "time_embedder.mlp.0.bias": (32,),
        "time_embedder.mlp.2.weight": (32, 32),
        "time_embedder.mlp.2.bias": (32,),
    }
    for layer in range(LAYERS):
        for side in ("", "_moe_gen"):
            shapes |= _layer_shapes(f"language_model.model.layers.{layer}.", side)
    return shapes


def _layer_shapes(at: str, side: str) -> dict[str, tuple[int, ...]]:
    return {
        f"{at}self_attn.q_proj{side}.weight": (32, 32),
        f"{at}self_attn.q_proj{side}.bias": (32,),
        f"{at}self_attn.k_proj{side}.weight": (16, 32),
        f"{at}self_attn.k_proj{side}.bias": (16,),
        f"{at}self_attn.v_proj{side}.weight": (16, 32),
        f"{at}self_attn.v_proj{side}.bias": (16,),
        f"{at}self_attn.o_proj{side}.weight": (32, 32),
        f"{at}self_attn.q_norm{side}.weight": (8,),
        f"{at}self_attn.k_norm{side}.weight": (8,),
        f"{at}mlp{side}.gate_proj.weight": (20, 32),
        f"{at}mlp{side}.up_proj.weight": (20, 32),
        f"{at}mlp{side}.down_proj.weight": (32, 20),
        f"{at}input_layernorm{side}.weight": (32,),
        f"{at}post_attention_layernorm{side}.weight": (32,),
    }


def random_bagel(dtype: torch.dtype = torch.float64, seed: int = 0, *, places: bool = True) -> Tensors:
    """Random tensors of these names, vision too; the table of places is theirs."""
    generator = torch.Generator().manual_seed(seed)
    tensors: Tensors = {}
    for name, shape in {**published_shapes(), **VISION}.items():
        centre = 1.0 if "norm" in name else 0.0
        tensors[name] = (centre + 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
    if places:
        rows = [place_slowly(row, column, 32) for row in range(SIDE) for column in range(SIDE)]
        tensors["latent_pos_embed.pos_embed"] = torch.stack(rows).float().to(dtype)
    return tensors


def write_folder(folder: Path, tensors: Tensors, config: dict[str, Any] | None = None) -> Path:
    """Weights and configs as published."""
    folder.mkdir(parents=True)
    save_file(tensors, folder / "ema.safetensors", metadata={"format": "pt"})
    (folder / "llm_config.json").write_text(json.dumps(CONFIG if config is None else config))
    (folder / "vit_config.json").write_text(json.dumps({"model_type": "siglip_vision_model", "hidden_size": 6}))
    return folder


def place_slowly(row: int, column: int, width: int) -> Tensor:
    """Of one latent: sines and cosines of its column, then those of its row."""
    entry = []
    for at in (column, row):
        angles = [at / 10_000 ** (i / (width // 4)) for i in range(width // 4)]
        entry += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
    return torch.tensor(entry, dtype=torch.float64)


def latent_slowly(tensors: Tensors, latent: Tensor, time: float, place: int) -> Tensor:
    """latent (C,) -> (D,): vae2llm(x) + time_embedder(t) + the table's entry."""
    angles = [time / 10_000 ** (i / (WAVES // 2)) for i in range(WAVES // 2)]
    waves = torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles], dtype=torch.float64)
    hidden = _linear(tensors, "time_embedder.mlp.0", waves)
    timed = _linear(tensors, "time_embedder.mlp.2", hidden * torch.sigmoid(hidden))
    row, column = divmod(place, SIDE)
    # the table is kept in float32
    return _linear(tensors, "vae2llm", latent) + timed + place_slowly(row, column, 32).float().double()


def layer_slowly(
    tensors: Tensors,
    layer: int,
    x: Tensor,
    positions: Sequence[int],
    seen: Sequence[set[int]],
    is_latent: Sequence[bool],
) -> Tensor:
    """Qwen2MoTDecoderLayer on one row x (T, D): seen[t] is what token t looks at."""
    at = f"language_model.model.layers.{layer}."
    length = len(x)
    queries = torch.zeros(HEADS, length, WIDTH, dtype=x.dtype)
    keys, values = torch.zeros(2, KV_HEADS, length, WIDTH, dtype=x.dtype)
    for token in range(length):
        side = "_moe_gen" if is_latent[token] else ""
        normed = rms_norm_slowly(x[token], tensors[f"{at}input_layernorm{side}.weight"])
        for letter, heads in (("q", queries), ("k", keys), ("v", values)):
            projected = _linear(tensors, f"{at}self_attn.{letter}_proj{side}", normed)
            for head in range(len(heads)):
                vector = projected[head * WIDTH : (head + 1) * WIDTH].clone()
                if letter != "v":
                    vector = rms_norm_slowly(vector, tensors[f"{at}self_attn.{letter}_norm{side}.weight"])
                    vector = rotate_slowly(vector, positions[token], THETA)
                heads[head, token] = vector
    mixed = attend_slowly(queries[None], keys[None], values[None], [seen])[0]
    out = torch.zeros_like(x)
    for token in range(length):
        side = "_moe_gen" if is_latent[token] else ""
        together = torch.cat([mixed[head, token] for head in range(HEADS)])
        middle = x[token] + _linear(tensors, f"{at}self_attn.o_proj{side}", together)
        normed = rms_norm_slowly(middle, tensors[f"{at}post_attention_layernorm{side}.weight"])
        gate = _linear(tensors, f"{at}mlp{side}.gate_proj", normed)
        up = _linear(tensors, f"{at}mlp{side}.up_proj", normed)
        out[token] = middle + _linear(tensors, f"{at}mlp{side}.down_proj", gate * torch.sigmoid(gate) * up)
    return out


def answers_slowly(
    tensors: Tensors, x: Tensor, positions: Sequence[int], seen: Sequence[set[int]], is_latent: Sequence[bool]
) -> list[Tensor]:
    """All layers, then for each token what it answers: logits (V,) of a text token, the velocity (C,) of a latent."""
    for layer in range(LAYERS):
        x = layer_slowly(tensors, layer, x, positions, seen, is_latent)
    answers = []
    for token, latent in enumerate(is_latent):
        side = "_moe_gen" if latent else ""
        normed = rms_norm_slowly(x[token], tensors[f"language_model.model.norm{side}.weight"])
        answers.append(_linear(tensors, "llm2vae" if latent else "language_model.lm_head", normed))
    return answers


def rms_norm_slowly(vector: Tensor, weight: Tensor) -> Tensor:
    """RMSNorm of one vector."""
    mean_square = sum(value**2 for value in vector.tolist()) / len(vector)
    return vector / math.sqrt(mean_square + EPS) * weight


def _linear(tensors: Tensors, name: str, vector: Tensor) -> Tensor:
    bias = tensors.get(f"{name}.bias")
    out = tensors[f"{name}.weight"] @ vector
    return out if bias is None else out + bias
