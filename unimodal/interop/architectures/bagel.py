"""BAGEL: weights in its published layout become a `UnifiedModel` with a flow branch, and back.

The layout (arXiv 2505.14683 and its public code) is one safetensors file beside `llm_config.json`. Of its public code
the names of the language model, of `vae2llm`, `llm2vae` and of what is doubled under mixture-of-transformers are
certain; those of `time_embedder.mlp.{0,2}`, of `latent_pos_embed.pos_embed` and of what lies below `vit_model.` and
`connector.` were not checked against a published file. A name that differs is refused, never guessed at.

Everything is in BAGEL's order here already: rotary positions pair channel i with i + W/2, time enters as cosines and
then sines of t in [0, 1] with t = 1 as noise, a position's first half is its column, and a latent's position is
row * side + column. Latents enter as patches (`tokenizers_vq/latent_patches.py`).
"""

from __future__ import annotations

import json
from dataclasses import replace
from math import isqrt
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import Qwen2Config

from tokenizers_vq.weights_file import write_weights
from unimodal.interop.architectures.bagel_names import BAGEL_POSITIONS, BAGEL_VISION, bagel_names
from unimodal.interop.architectures.decoder import decoder_fields, decoder_trunk
from unimodal.interop.architectures.rope import rope_parameters
from unimodal.interop.fresh_folder import fresh_folder
from unimodal.interop.their_config import BAGEL_CONFIG_FILE, completed, read_fields
from unimodal.interop.weights import check_names, fitted
from unimodal.model.branches.flow import FlowBranch
from unimodal.model.config import FlowConfig, ModelConfig, QKNormConfig
from unimodal.model.model import LATENTS, MULTI_TOKEN_WEIGHTS, UnifiedModel
from unimodal.model.sinusoids import MAX_PERIOD

# Shapes: S side of the table of positions, D model width.

BAGEL_WEIGHTS_FILE = "ema.safetensors"
NEEDED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
)
MIXTURE_LAYER = "Qwen2MoTDecoderLayer"


class OpenedBagel(NamedTuple):
    """A model on the CPU in evaluation mode, and the names of the tensors that have no counterpart here."""

    model: UnifiedModel
    skipped: tuple[str, ...]


def open_bagel(folder: Path, weights: str = BAGEL_WEIGHTS_FILE, side: int | None = None) -> OpenedBagel:
    """Open BAGEL's language model with its flow branch; every tensor keeps its bits and its type.

    weights: the safetensors file; no pickle is ever opened. side: the longest side of an image in latent patches
    (`max_latent_size`, 64 in the published model), needed where the table of positions is not stored.

    What sees pixels (`vit_model`, `connector`, `vit_pos_embed`) is skipped and named. Raises ValueError for a config
    that our transformer cannot compute, for weights that are missing, unknown, of another shape or of several types,
    and for a stored table of positions that is not ours.
    """
    path = folder / weights
    theirs = _read_config(folder)
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            skipped = tuple(sorted(name for name in shapes if name.startswith(BAGEL_VISION)))
            config = _our_config(theirs, shapes, side)
            table = bagel_names(config.trunk)
            check_names(set(shapes) - {*skipped, BAGEL_POSITIONS}, set(table.values()), "BAGEL")
            with torch.device("meta"):
                model = UnifiedModel(config)
            # a copy: CPU kernels sum in another order where a tensor begins at an odd address of the file
            ours = {
                name: fitted(file.get_tensor(table[name]), x.shape, table[name]).clone()
                for name, x in model.state_dict().items()
            }
            if BAGEL_POSITIONS in shapes:
                _check_positions(model, file.get_tensor(BAGEL_POSITIONS))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {' '.join(str(error).split())}") from error
    if len(kinds := {str(x.dtype) for x in ours.values()}) > 1:
        raise ValueError(f"{path} holds weights of several types ({', '.join(sorted(kinds))}): save them in one")
    model.load_state_dict(ours, assign=True)
    return OpenedBagel(model.eval().requires_grad_(False), skipped)


def _read_config(folder: Path) -> Qwen2Config:
    """llm_config.json; a field that decides the function must be written, a default of their class is none of it."""
    path = folder / BAGEL_CONFIG_FILE
    written = read_fields(path, "give a folder in the layout that BAGEL was published in")
    if written.get("model_type") != Qwen2Config.model_type:
        raise ValueError(f"{path} is of model type {written.get('model_type')!r}, BAGEL's is 'qwen2'")
    missing = [name for name in NEEDED if name not in written]
    missing += [] if {"rope_theta", "rope_parameters"} & set(written) else ["rope_theta"]
    if missing:
        raise ValueError(f"{path} lacks {len(missing)} fields that are needed, the first is {missing[0]}")
    whole = completed(Qwen2Config, written, path)
    for reason, wrong in _differences(whole).items():
        if wrong:
            raise ValueError(f"this BAGEL cannot be opened: {reason}")
    return whole


def _differences(whole: Qwen2Config) -> dict[str, bool]:
    """What our transformer cannot do -> whether the config asks for it.

    Whether layers are doubled, queries normed and the head is tied is not asked: BAGEL's code sets these fields itself,
    and the stored tensors tell.
    """
    kind, head_dim = rope_parameters(whole)["rope_type"], getattr(whole, "head_dim", None)
    width = whole.hidden_size // whole.num_attention_heads
    return {
        f"its rotary positions are scaled ({kind}), ours are not": kind != "default",
        "it looks through a sliding window, ours sees everything": bool(whole.use_sliding_window),
        f"its activation is {whole.hidden_act!r}, ours is silu": whole.hidden_act != "silu",
        f"head_dim is {head_dim}, ours is hidden_size / num_attention_heads = {width}": head_dim not in (None, width),
    }


def _our_config(theirs: Qwen2Config, shapes: dict[str, tuple[int, ...]], side: int | None) -> ModelConfig:
    flow = FlowConfig(
        latent_dim=_columns(shapes, "vae2llm.weight"),
        grid_size=_side(shapes.get(BAGEL_POSITIONS), side),
        time_channels=_columns(shapes, "time_embedder.mlp.0.weight"),
    )
    trunk = replace(
        decoder_trunk(theirs),
        qk_norm=QKNormConfig(kind="rms", eps=theirs.rms_norm_eps),
        qkv_bias=True,
        tied_head=False,
        mixture=True,
    )
    return ModelConfig(vocab_size=theirs.vocab_size, trunk=trunk, flow=flow)


def _columns(shapes: dict[str, tuple[int, ...]], name: str) -> int:
    if len(shapes[name]) != 2:
        raise ValueError(f"{name} has shape {shapes[name]}, a projection has rows and columns")
    return shapes[name][1]


def _side(stored: tuple[int, ...] | None, given: int | None) -> int:
    """Of the table of positions (S * S, D). Another side would be another stride and move every position."""
    if stored is None:
        if given is None:
            raise ValueError(f"{BAGEL_POSITIONS} is not stored: say the side of its table (64 in the published model)")
        return given
    side = isqrt(stored[0]) if stored else 0
    if len(stored) != 2 or side**2 != stored[0]:
        raise ValueError(f"{BAGEL_POSITIONS} has shape {stored}, which is not a table of side * side places")
    if given not in (None, side):
        raise ValueError(f"{BAGEL_POSITIONS} is a table of side {side}, not {given}: leave the side out")
    return side


def _check_positions(model: UnifiedModel, stored: Tensor) -> None:
    """Ours is computed, not loaded; one step of the type it is stored in is rounding."""
    table = _flow_branch(model).positions
    stored = fitted(stored, table.shape, BAGEL_POSITIONS)
    step = max(torch.finfo(stored.dtype).eps, torch.finfo(torch.float32).eps)
    apart = float((stored.double() - table.double()).abs().max())
    if not apart <= step:
        raise ValueError(
            f"{BAGEL_POSITIONS} differs by {apart:.2g} from the sines and cosines of its side, column first: "
            "such places cannot be kept"
        )


def _flow_branch(model: UnifiedModel) -> FlowBranch:
    branch = model.branches[LATENTS]
    assert isinstance(branch, FlowBranch)
    return branch


def write_bagel(model: UnifiedModel, folder: Path) -> None:
    """The inverse of `open_bagel`: `ema.safetensors`, positions among them, and `llm_config.json`; dropout is dropped.

    What sees pixels is not written: their class opens this without visual understanding; nor are multi-token heads.
    Raises ValueError for a model that BAGEL's layout cannot hold, and where the folder is not empty.
    """
    config, trunk, flow = model.config, model.config.trunk, model.config.flow
    same_norm = trunk.qk_norm == QKNormConfig(kind="rms", eps=trunk.norm_eps)
    if config.vision:
        raise ValueError("BAGEL's ViT has weights under other names, which are not written: this model has a ViT")
    plain = not trunk.tied_head and trunk.rope.scaling is None and trunk.num_heads * trunk.head_dim == trunk.dim
    same_positions = flow and (flow.pos_embed_period, flow.axial_rope_max) == (MAX_PERIOD, 0)
    if not (plain and same_positions and trunk.mixture and trunk.qkv_bias and same_norm):
        raise ValueError(
            "BAGEL has a mixture with a flow branch, biases of queries, keys and values, an RMS QK-norm with the eps "
            f"of its other norms, positions of periods up to {MAX_PERIOD:g} without axial RoPE, unscaled rotary "
            f"positions, heads of dim / num_heads channels and an untied head; this is {config}"
        )
    table, branch = bagel_names(trunk), _flow_branch(model)
    kept = {name: x for name, x in model.state_dict().items() if not name.startswith(MULTI_TOKEN_WEIGHTS)}
    tensors = {table[name]: x.detach().cpu().contiguous() for name, x in kept.items()}
    tensors[BAGEL_POSITIONS] = branch.positions.to("cpu", branch.latent_in.weight.dtype)
    with fresh_folder(folder) as unfinished:
        write_weights(tensors, unfinished / BAGEL_WEIGHTS_FILE, metadata={"format": "pt"})
        (unfinished / BAGEL_CONFIG_FILE).write_text(json.dumps(_their_config(config), indent=2))


def _their_config(config: ModelConfig) -> dict[str, Any]:
    """In the words of the version of transformers that BAGEL's code is written for: rope_theta is a field."""
    elsewhere = ("rope_parameters", "head_dim")
    shape = {name: value for name, value in decoder_fields(config).items() if name not in elsewhere}
    return {
        "model_type": Qwen2Config.model_type,
        **shape,
        "rope_theta": config.trunk.rope.theta,
        "hidden_act": "silu",
        "use_sliding_window": False,
        "layer_module": MIXTURE_LAYER,
        "qk_norm": True,
    }
