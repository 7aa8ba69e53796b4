"""Qwen3, dense: Llama with an RMS QK-norm and a free width of heads."""

from __future__ import annotations

from transformers import Qwen3Config, Qwen3ForCausalLM

from unimodal.interop.architectures.decoder import DecoderArchitecture
from unimodal.model.config import QKNormConfig


class Qwen3(DecoderArchitecture):
    """All heads share the weight of the QK-norm, and it has the eps of the other norms."""

    model_type = "qwen3"
    config_class = Qwen3Config
    model_class = Qwen3ForCausalLM

    def qk_norm(self, norm_eps: float) -> QKNormConfig:
        return QKNormConfig(kind="rms", eps=norm_eps)
