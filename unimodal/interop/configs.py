"""Configs: the shape of a model in our words and in Hugging Face's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from huggingface_hub.errors import StrictDataclassError
from transformers import ChameleonConfig, LlamaConfig, PreTrainedConfig

from unimodal.interop.names import CHAMELEON_NORM_EPS, LAYERS, Architecture
from unimodal.model.config import ModelConfig, QKNormConfig, RopeConfig, TransformerConfig

CONFIG_FILE = "config.json"
THEIR_CONFIGS: dict[Architecture, type[LlamaConfig | ChameleonConfig]] = {
    "llama": LlamaConfig,
    "chameleon": ChameleonConfig,
}
BAGEL_CONFIG_FILE = "llm_config.json"

Whole = TypeVar("Whole", bound=PreTrainedConfig)


class TheirConfig(NamedTuple):
    """A config.json of theirs: its architecture, the fields as written, and as their class completes them."""

    architecture: Architecture
    written: dict[str, Any]
    whole: LlamaConfig | ChameleonConfig


def their_shape(config: ModelConfig) -> dict[str, Any]:
    """The fields that their configs share; dropout is not among them, because they have none of that kind."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.trunk.dim,
        "intermediate_size": config.trunk.hidden_dim,
        "num_hidden_layers": config.trunk.num_layers,
        "num_attention_heads": config.trunk.num_heads,
        "num_key_value_heads": config.trunk.num_kv_heads,
        "max_position_embeddings": config.trunk.max_length,
        "rms_norm_eps": config.trunk.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.trunk.rope.theta},
        "tie_word_embeddings": False,
    }


def read_config(folder: Path) -> TheirConfig:
    """Read config.json of a folder of theirs. Raises ValueError where it is missing, broken or of another type."""
    if (folder / BAGEL_CONFIG_FILE).is_file():
        raise ValueError(f"{folder} is laid out as BAGEL's, of which no bundle is made: open it with `open_bagel`")
    path = folder / CONFIG_FILE
    written = read_fields(path, "give a folder as save_pretrained leaves it")
    kind = written.get("model_type")
    if kind not in LAYERS:
        raise ValueError(f"{path}: model type {kind!r} cannot be imported; {' and '.join(LAYERS)} can")
    architecture = cast("Architecture", kind)
    return TheirConfig(architecture, written, completed(THEIR_CONFIGS[architecture], written, path))


def read_fields(path: Path, way_out: str) -> dict[str, Any]:
    """The fields of a JSON file. Raises ValueError where it is missing (what to do is `way_out`) or broken."""
    if not path.is_file():
        raise ValueError(f"{path} is missing: {way_out}")
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def completed(kind: type[Whole], written: dict[str, Any], path: Path) -> Whole:
    """Fields as their class completes them. Raises ValueError for what it does not take."""
    try:
        return cast("Whole", kind.from_dict(dict(written)))
    except (StrictDataclassError, TypeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is not a config of {kind.model_type}: {reason}") from error


def our_config(theirs: TheirConfig) -> ModelConfig:
    """The same shape in our words. Raises ValueError that names the first field that we have no word for."""
    whole = theirs.whole
    for reason, wrong in _differences(theirs).items():
        if wrong:
            raise ValueError(f"this {theirs.architecture} cannot be imported: {reason}")
    chameleon = isinstance(whole, ChameleonConfig)
    trunk = TransformerConfig(
        dim=whole.hidden_size,
        num_layers=whole.num_hidden_layers,
        num_heads=whole.num_attention_heads,
        num_kv_heads=whole.num_key_value_heads or whole.num_attention_heads,
        hidden_dim=whole.intermediate_size,
        max_length=whole.max_position_embeddings,
        rope=RopeConfig(theta=float(rope_of(whole)["rope_theta"])),
        norm_eps=whole.rms_norm_eps,
        norm_placement="swin" if chameleon and whole.swin_norm else "pre",
        qk_norm=QKNormConfig(eps=CHAMELEON_NORM_EPS) if chameleon else None,
    )
    return ModelConfig(vocab_size=whole.vocab_size, trunk=trunk)


def rope_of(whole: Any) -> dict[str, Any]:
    """Their rotary positions in today's words, whatever version wrote them."""
    return {"rope_type": "default", **(cast("dict[str, Any] | None", whole.rope_parameters) or {})}


def _differences(theirs: TheirConfig) -> dict[str, bool]:
    """What our transformer cannot do -> whether theirs asks for it."""
    whole, rope = theirs.whole, rope_of(theirs.whole)
    head_dim = getattr(whole, "head_dim", None)
    width = whole.hidden_size // whole.num_attention_heads
    return {
        f"its rotary positions are scaled ({rope['rope_type']}), ours are not": rope["rope_type"] != "default",
        "it rotates a part of each head only, ours are rotated whole": rope.get("partial_rotary_factor", 1) != 1,
        "attention_bias is true, our projection after attention has no bias": bool(whole.attention_bias),
        "mlp_bias is true, our projections have no bias": bool(whole.mlp_bias),
        f"its activation is {whole.hidden_act!r}, ours is silu": whole.hidden_act != "silu",
        f"head_dim is {head_dim}, ours is hidden_size / num_attention_heads = {width}": head_dim not in (None, width),
        "its weights are quantized; save them in a floating-point type": "quantization_config" in theirs.written,
    }
