"""Qwen2 and Qwen2.5: Llama with biases of queries, keys and values."""

from __future__ import annotations

from transformers import Qwen2Config, Qwen2ForCausalLM

from unimodal.interop.architectures.decoder import DecoderArchitecture


class Qwen2(DecoderArchitecture):
    """`attention_bias` is no field of theirs: the biases are always there, and never after attention."""

    model_type = "qwen2"
    config_class = Qwen2Config
    model_class = Qwen2ForCausalLM
    qkv_bias = True
