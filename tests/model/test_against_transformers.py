"""The decoder against Hugging Face's Llama and Chameleon on shared weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import ChameleonConfig, ChameleonModel, LlamaConfig, LlamaForCausalLM
from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig

from tests.oracles.passes import logits
from tests.oracles.tiny import tiny_model
from unimodal.model.config import ModelConfig, RopeConfig
from unimodal.model.model import UnifiedModel

TOLERANCE = 1e-4
"""Theirs computes norms and angles in float32 whatever the dtype; logits here are about 5."""

RENAMED = (
    ("trunk.", ""),
    ("blocks.", "layers."),
    ("attention_norm.", "input_layernorm."),
    ("feed_forward_norm.", "post_attention_layernorm."),
    ("attention.qkv.", "self_attn."),
    ("attention.", "self_attn."),
    ("feed_forward.", "mlp."),
    ("embedding.", "embed_tokens."),
)
ROPE = RopeConfig(theta=500.0)
SHAPE: dict[str, Any] = {"dim": 32, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "hidden_dim": 48, "rope": ROPE}


def their_names(model: UnifiedModel) -> dict[str, Tensor]:
    weights = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in RENAMED:
            name = name.replace(ours, theirs)
        weights[name] = tensor
    return weights


def their_shape(config: ModelConfig) -> dict:
    trunk = config.trunk
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": trunk.dim,
        "intermediate_size": trunk.hidden_dim,
        "num_hidden_layers": trunk.num_layers,
        "num_attention_heads": trunk.num_heads,
        "num_key_value_heads": trunk.num_kv_heads,
        "max_position_embeddings": trunk.max_length,
        "rms_norm_eps": trunk.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": trunk.rope.theta},
        "attn_implementation": "eager",
    }


def load_strictly(model: nn.Module, weights: dict[str, Tensor], *, ignored: str = "-") -> None:
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert [name for name in missing if not name.startswith(ignored)] == [] and unexpected == []


def test_without_qk_norm_the_logits_are_those_of_llama() -> None:
    ours = tiny_model(qk_norm=None, **SHAPE)
    llama = LlamaForCausalLM(LlamaConfig(**their_shape(ours.config))).double().eval()
    weights = their_names(ours)
    head = {"lm_head.weight": weights.pop("heads.tokens.weight")}
    load_strictly(llama, {**{f"model.{name}": tensor for name, tensor in weights.items()}, **head})
    tokens = torch.randint(24, (2, 15))
    with torch.no_grad():
        torch.testing.assert_close(logits(ours, tokens), llama(tokens).logits, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("norm_placement", ["pre", "swin"])
def test_with_qk_norm_the_hidden_states_are_those_of_chameleon(norm_placement: str) -> None:
    ours = tiny_model(norm_placement=norm_placement, **SHAPE)
    small = ChameleonVQVAEConfig(base_channels=32, channel_multiplier=[1], num_res_blocks=1, embed_dim=4)
    config = ChameleonConfig(
        **their_shape(ours.config),
        swin_norm=norm_placement == "swin",
        vq_config=small,
        vocabulary_map={"<image>": 8711},
    )
    chameleon = ChameleonModel(config).double().eval()
    weights = their_names(ours)
    del weights["heads.tokens.weight"]
    load_strictly(chameleon, weights, ignored="vqmodel.")
    tokens = torch.randint(24, (2, 15))
    with torch.no_grad():
        theirs = chameleon(tokens).last_hidden_state
        torch.testing.assert_close(ours(tokens), theirs, rtol=TOLERANCE, atol=TOLERANCE)
