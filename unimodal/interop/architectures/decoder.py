"""The decoder that Llama and its relatives share: names of weights, fields of the config, what cannot be computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from unimodal.interop.architectures.base import TheirConfig
from unimodal.interop.architectures.rope import our_rope, rope_refusals, their_rope
from unimodal.model.checkpoint import EMBEDDING, HEAD
from unimodal.model.config import ModelConfig, NormPlacement, QKNormConfig, TransformerConfig

OUTSIDE_LAYERS = {
    EMBEDDING: "model.embed_tokens.weight",
    "trunk.norm.weight": "model.norm.weight",
    HEAD: "lm_head.weight",
}
"""Ours -> theirs, of what stands outside the layers."""
DECODER_LAYER = {
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
"""Ours -> theirs, of what every layer has."""


def decoder_names(trunk: TransformerConfig) -> dict[str, str]:
    """Our name of every weight of a dense trunk and its head -> theirs."""
    layer = {**DECODER_LAYER, **_attention_names(trunk)}
    layers = {
        f"trunk.blocks.{index}.{ours}": f"model.layers.{index}.{theirs}"
        for index in range(trunk.num_layers)
        for ours, theirs in layer.items()
    }
    return {**OUTSIDE_LAYERS, **layers}


def _attention_names(trunk: TransformerConfig) -> dict[str, str]:
    """Of what only some layers have: biases of queries, keys and values, and QK-norms."""
    found = [f"{name}_proj.bias" for name in "qkv"] if trunk.qkv_bias else []
    if trunk.qk_norm is not None:
        kinds = ("weight", "bias") if trunk.qk_norm.kind == "layer" else ("weight",)
        found += [f"{name}_norm.{kind}" for name in "qk" for kind in kinds]
    return {f"attention.qkv.{name}": f"self_attn.{name}" for name in found}


def decoder_refusals(theirs: TheirConfig) -> dict[str, bool]:
    """What our trunk cannot compute -> whether their config asks for it."""
    whole = theirs.whole
    kinds = set(getattr(whole, "layer_types", None) or ()) - {"full_attention"}
    return {
        **rope_refusals(whole),
        f"layers of it attend through a sliding window ({', '.join(sorted(kinds))}), ours to all tokens": bool(kinds),
        "mlp_bias is true, our projections have no bias": bool(getattr(whole, "mlp_bias", False)),
        f"its activation is {whole.hidden_act!r}, ours is silu": whole.hidden_act != "silu",
        "its weights are quantized; save them in a floating-point type": "quantization_config" in theirs.written,
    }


def decoder_trunk(whole: Any) -> TransformerConfig:
    """The trunk of a config of theirs, without QK-norm and biases."""
    return TransformerConfig(
        dim=whole.hidden_size,
        num_layers=whole.num_hidden_layers,
        num_heads=whole.num_attention_heads,
        num_kv_heads=whole.num_key_value_heads or whole.num_attention_heads,
        head_dim=getattr(whole, "head_dim", None) or 0,
        hidden_dim=whole.intermediate_size,
        max_length=whole.max_position_embeddings,
        rope=our_rope(whole),
        norm_eps=whole.rms_norm_eps,
        qk_norm=None,
        tied_head=bool(whole.tie_word_embeddings),
    )


def decoder_fields(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `decoder_trunk`: fields of their configs."""
    trunk = config.trunk
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": trunk.dim,
        "intermediate_size": trunk.hidden_dim,
        "num_hidden_layers": trunk.num_layers,
        "num_attention_heads": trunk.num_heads,
        "num_key_value_heads": trunk.num_kv_heads,
        "head_dim": trunk.head_dim,
        "max_position_embeddings": trunk.max_length,
        "rms_norm_eps": trunk.norm_eps,
        "rope_parameters": their_rope(trunk.rope),
        "tie_word_embeddings": trunk.tied_head,
    }


class DecoderArchitecture:
    """An `Architecture` of this decoder; subclasses name the classes and say what differs."""

    model_type: str
    config_class: type[PreTrainedConfig]
    model_class: type[PreTrainedModel]
    opened_by: str = "AutoModelForCausalLM"
    skipped: tuple[str, ...] = ()
    note: str = ""
    has_experts: bool = False
    """Whether its feed-forward parts may be mixtures of experts."""
    qkv_bias: bool = False
    """Whether queries, keys and values have biases."""
    norm_placements: tuple[NormPlacement, ...] = ("pre",)

    def qk_norm(self, norm_eps: float) -> QKNormConfig | None:
        """The QK-norm of a model whose other norms have this eps."""
        del norm_eps
        return None

    def refusals(self, theirs: TheirConfig) -> dict[str, bool]:
        """What our transformer cannot compute -> whether their config asks for it."""
        biased = not self.qkv_bias and bool(getattr(theirs.whole, "attention_bias", False))
        return {
            **decoder_refusals(theirs),
            "attention_bias is true, our projection after attention has no bias": biased,
        }

    def differences(self, trunk: TransformerConfig) -> dict[str, bool]:
        """What this architecture cannot compute -> whether a trunk of ours asks for it."""
        expected, found = self.qk_norm(trunk.norm_eps), trunk.qk_norm
        misplaced = trunk.norm_placement not in self.norm_placements
        return {
            **_norm_differences(expected, found),
            "has no experts": trunk.moe is not None and not self.has_experts,
            "has no biases of queries, keys and values": trunk.qkv_bias and not self.qkv_bias,
            "has biases of queries, keys and values": self.qkv_bias and not trunk.qkv_bias,
            f"has norm_placement {' or '.join(map(repr, self.norm_placements))}": misplaced,
        }

    def config(self, theirs: TheirConfig) -> ModelConfig:
        if reason := _first_true(self.refusals(theirs)):
            raise ValueError(f"this {self.model_type} cannot be imported: {reason}")
        return ModelConfig(vocab_size=theirs.whole.vocab_size, trunk=self.trunk(theirs.whole))

    def trunk(self, whole: Any) -> TransformerConfig:
        """Our trunk for a completed config of theirs."""
        shape = vars(decoder_trunk(whole))
        return TransformerConfig(**{**shape, "qk_norm": self.qk_norm(whole.rms_norm_eps), "qkv_bias": self.qkv_bias})

    def theirs(self, config: ModelConfig) -> PreTrainedConfig:
        return self.config_class(**decoder_fields(config))

    def mismatch(self, config: ModelConfig) -> str | None:
        return _first_true(self.differences(config.trunk))

    def names(self, config: ModelConfig) -> dict[str, str]:
        return decoder_names(config.trunk)

    def collected(self, tensors: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
        del config
        return tensors

    def in_memory(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(tensors)

    def convert(self, name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
        del name, config
        return tensor

    def restore(self, name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
        del name, config
        return tensor


def _norm_differences(expected: QKNormConfig | None, found: QKNormConfig | None) -> dict[str, bool]:
    if expected is None:
        return {"has no QK-norm": found is not None}
    if found is None or found.kind != expected.kind:
        return {f"has a QK-norm of kind {expected.kind!r}": True}
    return {f"has a QK-norm with an eps of {expected.eps}, this model's is {found.eps}": found.eps != expected.eps}


def _first_true(reasons: dict[str, bool]) -> str | None:
    return next((reason for reason, applies in reasons.items() if applies), None)
