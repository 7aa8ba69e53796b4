"""Names and shapes of a model, ours and Hugging Face's: one table an architecture."""

from __future__ import annotations

from typing import Literal

from unimodal.model.config import ModelConfig
from unimodal.model.mixture import expert_names

Architecture = Literal["llama", "chameleon"]

OUTSIDE = {
    "trunk.embedding.weight": "model.embed_tokens.weight",
    "trunk.norm.weight": "model.norm.weight",
    "heads.tokens.weight": "lm_head.weight",
}
LLAMA_LAYER = {
    "attention.qkv.q_proj.weight": "self_attn.q_proj.weight",
    "attention.qkv.k_proj.weight": "self_attn.k_proj.weight",
    "attention.qkv.v_proj.weight": "self_attn.v_proj.weight",
    "attention.o_proj.weight": "self_attn.o_proj.weight",
    "feed_forward.gate_proj.weight": "mlp.gate_proj.weight",
    "feed_forward.up_proj.weight": "mlp.up_proj.weight",
    "feed_forward.down_proj.weight": "mlp.down_proj.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "feed_forward_norm.weight": "post_attention_layernorm.weight",
}
HEAD_NORMS = {
    "attention.qkv.q_norm.weight": "self_attn.q_norm.weight",
    "attention.qkv.q_norm.bias": "self_attn.q_norm.bias",
    "attention.qkv.k_norm.weight": "self_attn.k_norm.weight",
    "attention.qkv.k_norm.bias": "self_attn.k_norm.bias",
}
LAYERS: dict[Architecture, dict[str, str]] = {"llama": LLAMA_LAYER, "chameleon": {**LLAMA_LAYER, **HEAD_NORMS}}

CHAMELEON_NORM_EPS = 1e-5
"""Written into `ChameleonLayerNorm.forward`, not into its config."""


def architecture_of(config: ModelConfig) -> Architecture:
    """The architecture of Hugging Face's that computes the same. Raises ValueError where there is none."""
    if config.trunk.mixture or config.flow or config.vision:
        raise ValueError(
            "no class of transformers has a flow branch or a mixture, nor this ViT: `write_bagel` writes BAGEL's layout"
        )
    if config.trunk.head_dim * config.trunk.num_heads != config.trunk.dim:
        raise ValueError(
            f"a model with {config.trunk.num_heads} heads of {config.trunk.head_dim} channels in a width of "
            f"{config.trunk.dim} is not exported: head_dim is dim / num_heads there"
        )
    if config.trunk.rope.scaling is not None:
        raise ValueError("scaled rotary positions are not exported: this model has rope.scaling")
    if config.trunk.qkv_bias or (config.trunk.qk_norm is not None and config.trunk.qk_norm.kind != "layer"):
        raise ValueError("neither Llama nor Chameleon has biases of queries, keys and values alone, or an RMS QK-norm")
    if config.trunk.qk_norm is None:
        if config.trunk.norm_placement != "pre":
            raise ValueError("Llama has its norms before each part: without QK-norm only norm_placement 'pre' exports")
        return "llama"
    if config.trunk.qk_norm.eps != CHAMELEON_NORM_EPS:
        raise ValueError(
            f"Chameleon's QK-norm has an eps of {CHAMELEON_NORM_EPS}, this model's is {config.trunk.qk_norm.eps}"
        )
    return "chameleon"


def name_table(architecture: Architecture, num_layers: int) -> dict[str, str]:
    """Our name of every weight -> theirs."""
    layers = {
        f"trunk.blocks.{layer}.{ours}": f"model.layers.{layer}.{theirs}"
        for layer in range(num_layers)
        for ours, theirs in LAYERS[architecture].items()
    }
    return {**OUTSIDE, **layers}


BAGEL_INSIDE = "language_model."
BAGEL_SECOND = "_moe_gen"
"""What BAGEL's modules of the generation side are called beyond those of the understanding side."""

BAGEL_LAYER = {
    **LLAMA_LAYER,
    "attention.qkv.q_proj.bias": "self_attn.q_proj.bias",
    "attention.qkv.k_proj.bias": "self_attn.k_proj.bias",
    "attention.qkv.v_proj.bias": "self_attn.v_proj.bias",
    "attention.qkv.q_norm.weight": "self_attn.q_norm.weight",
    "attention.qkv.k_norm.weight": "self_attn.k_norm.weight",
}
BAGEL_FLOW = {
    "branches.latents.latent_in": "vae2llm",
    "heads.velocity": "llm2vae",
    "branches.latents.time_in": "time_embedder.mlp.0",
    "branches.latents.time_out": "time_embedder.mlp.2",
}

BAGEL_PLACES = "latent_pos_embed.pos_embed"
"""A table that both sides compute; some checkpoints store it all the same."""

BAGEL_VISION = ("vit_model.", "connector.", "vit_pos_embed.")
"""What sees pictures as pixels there, and has no counterpart here."""


def bagel_table(num_layers: int) -> dict[str, str]:
    """Our name of every weight of a mixture with a flow branch -> BAGEL's (arXiv 2505.14683, its public code)."""
    layers = {
        f"trunk.blocks.{layer}.{ours}": f"model.layers.{layer}.{theirs}"
        for layer in range(num_layers)
        for ours, theirs in BAGEL_LAYER.items()
    }
    table: dict[str, str] = {}
    for ours, theirs in {**OUTSIDE, **layers}.items():
        names = (BAGEL_INSIDE + theirs, BAGEL_INSIDE + _second(theirs))
        table.update(zip(expert_names(ours) or (ours,), names, strict=False))
    for ours, theirs in BAGEL_FLOW.items():
        table.update({f"{ours}.{kind}": f"{theirs}.{kind}" for kind in ("weight", "bias")})
    return table


def _second(name: str) -> str:
    """The generation side's name: the suffix stands behind a projection, a norm, or the whole feed-forward part."""
    path = name.split(".")
    path[path.index("mlp") if "mlp" in path else -2] += BAGEL_SECOND
    return ".".join(path)
