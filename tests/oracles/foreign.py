"""Small random models of Hugging Face's that were not made here, saved as their users save them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import ChameleonConfig, ChameleonForConditionalGeneration, LlamaConfig, LlamaForCausalLM
from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig

from tests.oracles.tiny import SENTENCES
from unimodal.interop.registry import ARCHITECTURES

PADDED = 7
"""Rows of the embedding past the tokenizer's last id."""

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SMALL_ENCODER = ChameleonVQVAEConfig(base_channels=32, channel_multiplier=[1], num_res_blocks=0, embed_dim=4)

Foreign = LlamaForCausalLM | ChameleonForConditionalGeneration


def foreign_tokenizer(kind: str = "bpe") -> Tokenizer:
    """`<unk>`, `<s>`, `</s>` come first, and `<s>` is put before every text, as in Llama; `bpe` or `unigram`."""
    specials = ["<unk>", "<s>", "</s>"]
    if kind == "bpe":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        trainer = trainers.BpeTrainer(
            vocab_size=300, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        )
    else:
        tokenizer = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(
            vocab_size=300,
            special_tokens=specials,
            unk_token="<unk>",
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(SENTENCES, trainer=trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def foreign_llama(vocab_size: int, **changes: Any) -> LlamaForCausalLM:
    """Random weights, norms too."""
    return _shaken(LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **{**SHAPE, **changes})))


def foreign_chameleon(vocab_size: int, **changes: Any) -> ChameleonForConditionalGeneration:
    """Random weights, norms too; id 9 is its only image code."""
    names = {"vq_config": SMALL_ENCODER.to_dict(), "vocabulary_map": {"<image>": 8, "IMGIMGAZ": 9}}
    config = ChameleonConfig(vocab_size=vocab_size, **{**SHAPE, **names, **changes})
    return _shaken(ChameleonForConditionalGeneration(config))


def saved(model: Foreign, folder: Path, tokenizer: Tokenizer | None = None, **saving: Any) -> Path:
    """A model with its tokenizer in a folder."""
    model.save_pretrained(folder, **saving)
    (tokenizer or foreign_tokenizer()).save(str(folder / "tokenizer.json"))
    return folder


def _shaken(model: Any, noise: float = 0.2) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.add_(noise * torch.randn_like(buffer))
    return model.eval()


ODD_SHAPE: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 10,
    "max_position_embeddings": 256,
    "rms_norm_eps": 3e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3_ROPE: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
NEEDED: dict[str, dict[str, Any]] = {
    "chameleon": {"head_dim": 8, "vq_config": SMALL_ENCODER.to_dict(), "vocabulary_map": {}},
    "dots1": {
        "n_routed_experts": 5,
        "num_experts_per_tok": 2,
        "n_shared_experts": 2,
        "moe_intermediate_size": 24,
        "first_k_dense_replace": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.7,
        "sliding_window": None,
    },
    "qwen3_moe": {
        "num_experts": 5,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "mlp_only_layers": [0],
        "norm_topk_prob": True,
    },
    "mixtral": {"num_local_experts": 5, "num_experts_per_tok": 2},
}
"""What a model type must have beyond ODD_SHAPE, or instead."""


def foreign_model(model_type: str, *, noise: float = 0.1, **changes: Any) -> Any:
    """A random model of a registered architecture; `noise` is added to all weights, norms too."""
    architecture = ARCHITECTURES[model_type]
    config = architecture.config_class(**{**ODD_SHAPE, **NEEDED.get(model_type, {}), **changes})
    return _shaken(architecture.model_class(config), noise)
