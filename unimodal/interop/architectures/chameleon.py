"""Chameleon 7B and 34B: Llama with a QK-norm for each head, and an image encoder that we have no use for."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import ChameleonConfig, ChameleonForConditionalGeneration
from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig

from unimodal.interop.architectures.base import TheirConfig
from unimodal.interop.architectures.decoder import DecoderArchitecture, decoder_fields
from unimodal.model.config import ModelConfig, QKNormConfig, TransformerConfig

# Shapes: P parts that a model was trained in, H heads, W head width.

CHAMELEON_NORM_EPS = 1e-5
"""Written into `ChameleonLayerNorm.forward`, not into its config."""

STAND_IN = ChameleonVQVAEConfig(
    embed_dim=1,
    num_embeddings=1,
    latent_channels=1,
    base_channels=32,
    channel_multiplier=[1],
    num_res_blocks=0,
    attn_type="none",
)
"""The smallest image encoder that their class can be built with; see `Chameleon`."""


class Chameleon(DecoderArchitecture):
    """The language part alone.

    Their class holds an image encoder and cannot be built without; ours is of another kind. So an export gets the
    smallest there is with weights that are all zero, and no names for image codes: pictures (`pixel_values`) then raise
    an error instead of becoming wrong codes. With names it would also set the logits of all image codes to the lowest
    number (`forward` masks ids named IMGIMG...) and could neither draw nor be trained to; without, all logits are ours.
    """

    model_type = "chameleon"
    config_class = ChameleonConfig
    model_class = ChameleonForConditionalGeneration
    opened_by = "ChameleonForConditionalGeneration"
    skipped: tuple[str, ...] = ("model.vqmodel.",)
    norm_placements = ("pre", "swin")
    note = """
**The image encoder in here is a stand-in.** That class cannot be built without one (`model.vqmodel`). Its weights are
all zero, and no image code has a name in `vocabulary_map`, so `pixel_values` raise an error: give pictures as ids.
Because the codes have no names the class does not mask them either, and scores text and image ids alike."""

    def qk_norm(self, norm_eps: float) -> QKNormConfig:
        del norm_eps
        return QKNormConfig(kind="layer", eps=CHAMELEON_NORM_EPS)

    def refusals(self, theirs: TheirConfig) -> dict[str, bool]:
        whole, written = theirs.whole, getattr(theirs.whole, "head_dim", None)
        width = whole.hidden_size // whole.num_attention_heads
        wide = {f"head_dim is {written}, theirs is hidden_size / num_attention_heads = {width}": written != width}
        return {**super().refusals(theirs), **(wide if written else {})}

    def differences(self, trunk: TransformerConfig) -> dict[str, bool]:
        heads, width, dim = trunk.num_heads, trunk.head_dim, trunk.dim
        free = {f"has heads of hidden_size / num_heads, this model {heads} of {width} in {dim}": heads * width != dim}
        return {**super().differences(trunk), **free}

    def trunk(self, whole: Any) -> TransformerConfig:
        shape = vars(super().trunk(whole))
        return TransformerConfig(**{**shape, "norm_placement": "swin" if whole.swin_norm else "pre"})

    def theirs(self, config: ModelConfig) -> ChameleonConfig:
        fields = {name: value for name, value in decoder_fields(config).items() if name != "head_dim"}
        swin = config.trunk.norm_placement == "swin"
        return ChameleonConfig(**fields, swin_norm=swin, vq_config=STAND_IN.to_dict(), vocabulary_map={})

    def convert(self, name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
        """QK-norms (P, W) of a model that was trained in P parts -> (H, W): the heads of one part share its norm."""
        heads = {"q_norm": config.trunk.num_heads, "k_norm": config.trunk.num_kv_heads}.get(name.split(".")[-2])
        if heads is None or tensor.ndim != 2 or not tensor.shape[0] or heads % tensor.shape[0]:
            return tensor
        return tensor.repeat_interleave(heads // tensor.shape[0], dim=0)
