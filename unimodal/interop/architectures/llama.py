"""Llama 1 to 3.3: no QK-norm, no biases, from 3.1 on with scaled rotary positions."""

from __future__ import annotations

from transformers import LlamaConfig, LlamaForCausalLM

from unimodal.interop.architectures.decoder import DecoderArchitecture
from unimodal.model.config import TransformerConfig


class Llama(DecoderArchitecture):
    """The width of a head is free, but heads divide hidden_size: their config insists on it."""

    model_type = "llama"
    config_class = LlamaConfig
    model_class = LlamaForCausalLM

    def differences(self, trunk: TransformerConfig) -> dict[str, bool]:
        heads, dim = trunk.num_heads, trunk.dim
        uneven = {f"has a number of heads that divides hidden_size, this model {heads} of {dim}": bool(dim % heads)}
        return {**super().differences(trunk), **uneven}
