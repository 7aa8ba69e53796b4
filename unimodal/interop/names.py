"""Names and shapes of a transformer, ours and Hugging Face's: one table an architecture."""

from __future__ import annotations

from typing import Literal

from unimodal.model.config import TransformerConfig

Architecture = Literal["llama", "chameleon"]

OUTSIDE = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
LLAMA_LAYER = {
    "attention.q_proj.weight": "self_attn.q_proj.weight",
    "attention.k_proj.weight": "self_attn.k_proj.weight",
    "attention.v_proj.weight": "self_attn.v_proj.weight",
    "attention.o_proj.weight": "self_attn.o_proj.weight",
    "feed_forward.gate_proj.weight": "mlp.gate_proj.weight",
    "feed_forward.up_proj.weight": "mlp.up_proj.weight",
    "feed_forward.down_proj.weight": "mlp.down_proj.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "feed_forward_norm.weight": "post_attention_layernorm.weight",
}
HEAD_NORMS = {
    "attention.q_norm.weight": "self_attn.q_norm.weight",
    "attention.q_norm.bias": "self_attn.q_norm.bias",
    "attention.k_norm.weight": "self_attn.k_norm.weight",
    "attention.k_norm.bias": "self_attn.k_norm.bias",
}
LAYERS: dict[Architecture, dict[str, str]] = {"llama": LLAMA_LAYER, "chameleon": {**LLAMA_LAYER, **HEAD_NORMS}}

CHAMELEON_NORM_EPS = 1e-5
"""Written into `ChameleonLayerNorm.forward`, not into its config."""


def architecture_of(config: TransformerConfig) -> Architecture:
    """The architecture of Hugging Face's that computes the same. Raises ValueError where there is none."""
    if config.qk_norm is None:
        if config.norm_placement != "pre":
            raise ValueError("Llama has its norms before each part: without QK-norm only norm_placement 'pre' exports")
        return "llama"
    if config.qk_norm.eps != CHAMELEON_NORM_EPS:
        raise ValueError(
            f"Chameleon's QK-norm has an eps of {CHAMELEON_NORM_EPS}, this model's is {config.qk_norm.eps}"
        )
    return "chameleon"


def name_table(architecture: Architecture, num_layers: int) -> dict[str, str]:
    """Our name of every weight -> theirs."""
    layers = {
        f"blocks.{layer}.{ours}": f"model.layers.{layer}.{theirs}"
        for layer in range(num_layers)
        for ours, theirs in LAYERS[architecture].items()
    }
    return {**OUTSIDE, **layers}
