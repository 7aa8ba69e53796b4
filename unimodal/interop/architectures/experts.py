"""Mixtures of experts of theirs: dots1, Qwen3-MoE and Mixtral, on what Llama and its relatives share.

On disk every expert has matrices of its own; in memory their classes hold gate and up of all experts as one tensor
(transformers 5, conversion_mapping.py). Ours are stacked, gate and up apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Dots1Config,
    Dots1ForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedConfig,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from unimodal.interop.architectures.base import TheirConfig
from unimodal.interop.architectures.decoder import (
    DecoderArchitecture,
    decoder_fields,
    decoder_names,
    decoder_trunk,
)
from unimodal.interop.architectures.qwen3 import Qwen3
from unimodal.model.config import ModelConfig, TransformerConfig
from unimodal.model.feedforward.config import MoEConfig

DENSE = "feed_forward."
"""Within a layer of ours; a layer with experts has the parts below it."""
STACKED = ("gate_proj", "up_proj", "down_proj")


class ExpertArchitecture(DecoderArchitecture):
    """Subclasses say where their files keep an expert, what their router is, and read their config."""

    has_experts = True
    parts: str = "mlp"
    """What their files call the feed-forward part of a layer with experts."""
    matrices: tuple[str, str, str] = STACKED
    """Their names of gate, up and down of an expert."""
    bias: str = ""
    """Their name of the router's bias; empty where it has none."""
    shared: str = ""
    """Their name of the shared experts; empty where there are none."""

    def moe(self, whole: Any) -> MoEConfig:
        """Their fields in our words."""
        raise NotImplementedError

    def moe_fields(self, moe: MoEConfig) -> dict[str, Any]:
        """The inverse of `moe`."""
        raise NotImplementedError

    def moe_differences(self, moe: MoEConfig) -> dict[str, bool]:
        """What this architecture cannot compute -> whether experts of ours ask for it."""
        raise NotImplementedError

    def trunk(self, whole: Any) -> TransformerConfig:
        shape = vars(decoder_trunk(whole))
        return TransformerConfig(**{**shape, "qk_norm": self.qk_norm(whole.rms_norm_eps), "moe": self.moe(whole)})

    def theirs(self, config: ModelConfig) -> PreTrainedConfig:
        moe = config.trunk.moe
        assert moe is not None
        return self.config_class(**{**decoder_fields(config), **self.moe_fields(moe)})

    def differences(self, trunk: TransformerConfig) -> dict[str, bool]:
        if trunk.moe is None:
            return {"has experts": True}
        by_modality = "has one bias for all tokens, this model one for each modality, which cannot be folded into one"
        return {
            **self.moe_differences(trunk.moe),
            by_modality: trunk.moe.bias_by == "modality",
            **super().differences(trunk),
        }

    def names(self, config: ModelConfig) -> dict[str, str]:
        moe = config.trunk.moe
        assert moe is not None
        found: dict[str, str] = {}
        for ours, theirs in decoder_names(config.trunk).items():
            layer = int(ours.split(".")[2]) if ours.startswith("trunk.blocks.") else -1
            if f".{DENSE}" not in ours or layer < moe.first_dense:
                found[ours] = theirs
        for layer in range(moe.first_dense, config.trunk.num_layers):
            found |= self._layer_names(moe, f"trunk.blocks.{layer}.{DENSE}", f"model.layers.{layer}.{self.parts}.")
        return found

    def _layer_names(self, moe: MoEConfig, ours: str, theirs: str) -> dict[str, str]:
        found = {f"{ours}router.gate.weight": f"{theirs}gate.weight"}
        found[f"{ours}router.bias"] = theirs + (self.bias or "gate.bias")
        found |= {f"{ours}experts.{name}": f"{theirs}experts.{name}" for name in STACKED}
        if moe.shared:
            found |= {f"{ours}shared.{name}.weight": f"{theirs}{self.shared}.{name}.weight" for name in STACKED}
        return found

    def collected(self, tensors: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
        moe = config.trunk.moe
        assert moe is not None
        found = dict(tensors)
        for layer in range(moe.first_dense, config.trunk.num_layers):
            where = f"model.layers.{layer}.{self.parts}."
            for ours, theirs in zip(STACKED, self.matrices, strict=True):
                names = [f"{where}experts.{expert}.{theirs}.weight" for expert in range(moe.experts)]
                if all(name in found for name in names) and len({found[name].shape for name in names}) == 1:
                    found[f"{where}experts.{ours}"] = torch.stack([found.pop(name) for name in names])
            if not self.bias:
                found[f"{where}gate.bias"] = torch.zeros(moe.experts)
        return found

    def convert(self, name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
        return tensor[None].float() if name.endswith("router.bias") else tensor

    def restore(self, name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
        return tensor[0] if name.endswith("router.bias") else tensor

    def in_memory(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            name = name.replace(f".{self.parts}.", ".mlp.")
            if name.endswith(".experts.gate_proj"):
                up = tensors[_sibling(name, "up_proj", self.parts)]
                found[name.replace("gate_proj", "gate_up_proj")] = torch.cat([tensor, up], dim=1)
            elif name.endswith("mlp.gate.bias"):
                if tensor.any():
                    raise ValueError(f"{self.model_type} has no bias of its router, and this model's is not 0")
            elif not name.endswith(".experts.up_proj"):
                found[name] = tensor
        return found


def _sibling(name: str, part: str, parts: str) -> str:
    return name.replace(".mlp.", f".{parts}.").replace("gate_proj", part)


class Dots1(ExpertArchitecture, Qwen3):
    """DeepSeek-V3's router and experts with Qwen3's attention: what our own mixtures are exported to."""

    model_type = "dots1"
    config_class = Dots1Config
    model_class = Dots1ForCausalLM
    bias = "gate.e_score_correction_bias"
    shared = "shared_experts"

    def refusals(self, theirs: TheirConfig) -> dict[str, bool]:
        grouped = (theirs.whole.n_group or 1) > 1
        return {"its experts are chosen in groups, ours among all": grouped, **super().refusals(theirs)}

    def moe(self, whole: Any) -> MoEConfig:
        return MoEConfig(
            experts=whole.n_routed_experts,
            top_k=whole.num_experts_per_tok,
            shared=whole.n_shared_experts or 0,
            hidden_dim=whole.moe_intermediate_size,
            first_dense=whole.first_k_dense_replace or 0,
            scores="sigmoid",
            normalized=bool(whole.norm_topk_prob),
            scale=whole.routed_scaling_factor,
        )

    def moe_fields(self, moe: MoEConfig) -> dict[str, Any]:
        return {
            "n_routed_experts": moe.experts,
            "num_experts_per_tok": moe.top_k,
            "n_shared_experts": moe.shared,
            "moe_intermediate_size": moe.hidden_dim,
            "first_k_dense_replace": moe.first_dense,
            "norm_topk_prob": moe.normalized,
            "routed_scaling_factor": moe.scale,
            "sliding_window": None,
        }

    def moe_differences(self, moe: MoEConfig) -> dict[str, bool]:
        return {"has sigmoid scores": moe.scores != "sigmoid", "has shared experts": not moe.shared}


class Qwen3Moe(ExpertArchitecture, Qwen3):
    """Softmax scores and no bias."""

    model_type = "qwen3_moe"
    config_class = Qwen3MoeConfig
    model_class = Qwen3MoeForCausalLM

    def refusals(self, theirs: TheirConfig) -> dict[str, bool]:
        whole = theirs.whole
        dense = sorted(whole.mlp_only_layers or [])
        scattered = whole.decoder_sparse_step != 1 or dense != list(range(len(dense)))
        return {"its dense layers are not the first ones": scattered, **super().refusals(theirs)}

    def moe(self, whole: Any) -> MoEConfig:
        return MoEConfig(
            experts=whole.num_experts,
            top_k=whole.num_experts_per_tok,
            shared=0,
            hidden_dim=whole.moe_intermediate_size,
            first_dense=len(whole.mlp_only_layers or []),
            scores="softmax",
            bias_by="none",
            normalized=bool(whole.norm_topk_prob),
        )

    def moe_fields(self, moe: MoEConfig) -> dict[str, Any]:
        return {
            "num_experts": moe.experts,
            "num_experts_per_tok": moe.top_k,
            "moe_intermediate_size": moe.hidden_dim,
            "mlp_only_layers": list(range(moe.first_dense)),
            "norm_topk_prob": moe.normalized,
            "decoder_sparse_step": 1,
        }

    def moe_differences(self, moe: MoEConfig) -> dict[str, bool]:
        return {
            "has softmax scores": moe.scores != "softmax",
            "has no shared experts": moe.shared > 0,
            "has gates without a scale": moe.scale != 1,
        }


class Mixtral(ExpertArchitecture):
    """Llama's attention; all layers have experts, and gates sum to 1."""

    model_type = "mixtral"
    config_class = MixtralConfig
    model_class = MixtralForCausalLM
    parts = "block_sparse_moe"
    matrices = ("w1", "w3", "w2")

    def refusals(self, theirs: TheirConfig) -> dict[str, bool]:
        windowed = bool(theirs.whole.sliding_window)
        return {"it attends through a sliding window, ours to all tokens": windowed, **super().refusals(theirs)}

    def moe(self, whole: Any) -> MoEConfig:
        return MoEConfig(
            experts=whole.num_local_experts,
            top_k=whole.num_experts_per_tok,
            shared=0,
            hidden_dim=whole.intermediate_size,
            first_dense=0,
            scores="softmax",
            bias_by="none",
        )

    def moe_fields(self, moe: MoEConfig) -> dict[str, Any]:
        return {
            "num_local_experts": moe.experts,
            "num_experts_per_tok": moe.top_k,
            "intermediate_size": moe.hidden_dim,
            "sliding_window": None,
        }

    def moe_differences(self, moe: MoEConfig) -> dict[str, bool]:
        return {
            "has softmax scores": moe.scores != "softmax",
            "has no shared experts": moe.shared > 0,
            "has gates that sum to 1": moe.scale != 1 or not moe.normalized,
            "has experts in every layer": moe.first_dense > 0,
        }
