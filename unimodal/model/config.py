"""The architecture of a model, as frozen dataclasses: a config that exists is a config that is valid."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from tokenizers_vq.field_types import from_plain
from tokenizers_vq.media import PatchSpec
from unimodal.model.feedforward.config import MoEConfig

NormPlacement = Literal["pre", "swin"]
EncoderKind = Literal["siglip", "moonvit"]
ConnectorKind = Literal["mlp", "pixel_shuffle", "resampler"]
INIT_STD = 0.02
"""Standard deviation of new weight matrices."""


@dataclass(frozen=True, kw_only=True)
class QKNormConfig:
    """Norms on queries and keys, before the rotation.

    `layer` is Chameleon's LayerNorm with parameters for each head (arXiv 2405.09818, section 2.3). `rms` is the RMSNorm
    of Qwen3 and BAGEL, whose weight all heads share.
    """

    eps: float = 1e-5
    kind: Literal["layer", "rms"] = "layer"

    def __post_init__(self) -> None:
        if self.kind not in ("layer", "rms"):
            raise ValueError(f"the QK-norm is 'layer' or 'rms', got {self.kind!r}")


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Llama 3's scaling of rotary frequencies to contexts beyond `original_max_length` positions.

    Wavelengths above original_max_length / low_freq_factor are stretched by `factor`, those below
    original_max_length / high_freq_factor are kept, and those between are interpolated (arXiv 2407.21783, section 3.2,
    and the public code of Llama 3.1).
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_length: int = 8192

    def __post_init__(self) -> None:
        if self.factor < 1 or not 0 < self.low_freq_factor < self.high_freq_factor or self.original_max_length < 1:
            raise ValueError(f"rope scaling has a factor of at least 1 and low below high frequencies, got {self}")


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding: base frequency `theta`, and the scaling of long contexts where there is one."""

    theta: float = 10_000.0
    scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        if self.theta <= 1:
            raise ValueError(f"rope's theta is above 1, got {self.theta}")


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """A decoder-only trunk: Llama-2's shape with QK-norm, dropout and a choice of norm placement.

    `head_dim` is the width of one head, and 0 stands for dim / num_heads. `norm_placement` is `pre` (Llama and
    Chameleon 7B: x + f(norm(x))) or `swin` (Chameleon 34B: x + norm(f(x))). `tied_head` makes the token head share the
    weight of the embedding. `mixture` gives every layer a second set of weights for tokens that are generated as
    latents (mixture-of-transformers), `moe` makes the feed-forward parts mixtures of experts. `dropout` acts after
    attention and after the feed-forward part (0.1 in Chameleon 7B, 0 in 34B).
    """

    dim: int = 256
    num_layers: int = 6
    num_heads: int = 2
    num_kv_heads: int = 1
    head_dim: int = 0
    hidden_dim: int = 704
    max_length: int = 512
    rope: RopeConfig = RopeConfig()
    norm_eps: float = 1e-5
    norm_placement: NormPlacement = "pre"
    qk_norm: QKNormConfig | None = QKNormConfig()
    qkv_bias: bool = False
    tied_head: bool = False
    dropout: float = 0.0
    mixture: bool = False
    moe: MoEConfig | None = None

    def __post_init__(self) -> None:
        if min(self.num_heads, self.num_kv_heads) < 1 or self.num_heads % self.num_kv_heads:
            raise ValueError(f"kv heads must divide heads, got {self}")
        if not self.head_dim:
            if self.dim % self.num_heads:
                raise ValueError(f"heads must divide dim where head_dim is not set, got {self}")
            object.__setattr__(self, "head_dim", self.dim // self.num_heads)
        if self.head_dim % 2 or self.head_dim < 2:
            raise ValueError(f"rotary positions need an even head width, got {self.head_dim} from {self}")
        if min(self.dim, self.num_layers, self.hidden_dim, self.max_length) < 1:
            raise ValueError(f"sizes must be at least 1, got {self}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout lies in [0, 1), got {self.dropout}")
        if self.norm_placement not in ("pre", "swin"):
            raise ValueError(f"norm_placement is 'pre' or 'swin', got {self.norm_placement!r}")
        if self.mixture and self.norm_placement != "pre":
            raise ValueError("a mixture of transformers has its norms before each part: norm_placement 'pre'")
        if self.mixture and self.moe:
            raise ValueError("a mixture of transformers has dense parts: take trunk.moe or a flow's mixture, not both")

    @property
    def residual_std(self) -> float:
        """Standard deviation of new projections into the residual stream: 0.02 / sqrt(2 x layers) (GPT-2)."""
        return INIT_STD / (2 * self.num_layers) ** 0.5

    def of_layer(self, layer: int) -> TransformerConfig:
        """With experts only where this layer has some."""
        return dataclasses.replace(self, moe=None) if self.moe and layer < self.moe.first_dense else self


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """BAGEL's branch: images as continuous latents of an autoencoder, drawn by flow matching (arXiv 2505.14683).

    `latent_dim` numbers a latent token; at most `grid_size` latent tokens along each side of an image. `time_channels`
    sines and cosines encode the time. `pos_embed_period`, over 2 pi, is the longest period of the 2-D position
    embedding: with BAGEL's 10,000 most channels hardly change over a small image. `axial_rope_max` is the highest
    frequency of 2-D axial RoPE on latents, in radians per grid step; 0 disables it (BAGEL). `autoencoder` is the hash
    of the one whose latents were trained on, or empty.
    """

    latent_dim: int
    grid_size: int
    time_channels: int = 256
    pos_embed_period: float = 10_000.0
    axial_rope_max: float = 0.0
    autoencoder: str = ""

    def __post_init__(self) -> None:
        if self.pos_embed_period <= 1:
            raise ValueError(f"the longest period of positions is above 1, got {self.pos_embed_period}")
        if not 0 <= self.axial_rope_max <= math.pi:
            raise ValueError(f"axial RoPE turns by 0 to pi from one latent to the next, got {self.axial_rope_max}")
        if min(self.latent_dim, self.grid_size) < 1 or self.time_channels < 2 or self.time_channels % 2:
            raise ValueError(f"a flow needs latents, positions and an even number of time channels, got {self}")


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """A ViT through which images are seen (branches/vision) and its connector.

    `patches` bounds the patches of an image. The learnt positions are a table of `grid_size` x `grid_size`, resized to
    other shapes; those that the `mlp` adds have periods up to `pos_embed_period`. The encoder is SigLIP's or `moonvit`,
    which adds 2-D RoPE and resizes bicubically. A token of the sequence is `merge` x `merge` patches of the ViT, so the
    data's patches are that many times as large. `pixel_shuffle` is Kimi-VL's connector, `resampler` Qwen-VL's, for
    which `patches.tokens` is the number of tokens that any image takes.
    """

    patches: PatchSpec = field(default_factory=PatchSpec)
    grid_size: int = 8
    dim: int = 128
    num_layers: int = 3
    num_heads: int = 2
    hidden_dim: int = 384
    norm_eps: float = 1e-6
    pos_embed_period: float = 10_000.0
    encoder: EncoderKind = "siglip"
    merge: int = 1
    connector: ConnectorKind = "mlp"

    def __post_init__(self) -> None:
        sizes = (self.grid_size, self.num_layers, self.hidden_dim, self.num_heads, self.merge)
        if min(sizes) < 1 or self.dim % self.num_heads or self.pos_embed_period <= 1:
            raise ValueError(f"a ViT has sizes of at least 1 and heads that divide its width, got {self}")
        if self.encoder not in ("siglip", "moonvit") or self.connector not in ("mlp", "pixel_shuffle", "resampler"):
            raise ValueError(f"a ViT is siglip or moonvit, its connector mlp, pixel_shuffle or resampler, got {self}")
        if self.patches.size % self.merge:
            raise ValueError(f"patches of {self.patches.size} pixels are not {self.merge} of a ViT's along a side")
        if self.encoder == "moonvit" and self.dim // self.num_heads % 4:
            raise ValueError(f"2-D RoPE needs heads whose width 4 divides, got {self.dim} / {self.num_heads}")
        if bool(self.patches.tokens) != (self.connector == "resampler") or (self.patches.tokens and self.merge > 1):
            raise ValueError(
                "a resampler goes with the number of its tokens (data.templates.resampled_tokens) and a merge of 1; "
                f"got {self.patches.tokens} tokens, connector {self.connector}, merge {self.merge}"
            )

    @property
    def patch_size(self) -> int:
        """Pixels along a side of a patch of the ViT."""
        return self.patches.size // self.merge

    @property
    def residual_std(self) -> float:
        """As `TransformerConfig.residual_std`, by the ViT's own depth."""
        return INIT_STD / (2 * self.num_layers) ** 0.5


@dataclass(frozen=True, kw_only=True)
class MultiTokenConfig:
    """Multi-token prediction (heads/multi_token.py): tokens beyond the next one that are predicted, and by what."""

    depth: int = 1
    kind: Literal["sequential", "parallel", "medusa"] = "sequential"

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ValueError(f"multi-token prediction has a depth of at least 1, got {self.depth} (null is none)")
        if self.kind not in ("sequential", "parallel", "medusa"):
            raise ValueError(f"multi-token prediction is 'sequential', 'parallel' or 'medusa', got {self.kind!r}")

    @property
    def has_blocks(self) -> bool:
        """Whether each depth attends to what came before."""
        return self.kind != "medusa"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A whole model: vocabulary, trunk, one config for each branch that it has, and that of multi-token prediction."""

    vocab_size: int
    trunk: TransformerConfig = TransformerConfig()
    flow: FlowConfig | None = None
    vision: VisionConfig | None = None
    multi_token: MultiTokenConfig | None = None

    def __post_init__(self) -> None:
        if self.vocab_size < 1:
            raise ValueError(f"a vocabulary has at least one id, got {self.vocab_size}")
        if (self.flow or self.vision) and self.trunk.dim % 4:
            raise ValueError(f"2-D position embeddings need a width that 4 divides, got {self.trunk.dim}")
        if self.flow and self.flow.axial_rope_max and self.trunk.head_dim % 4:
            raise ValueError(f"axial RoPE needs a head width that 4 divides, got {self.trunk.head_dim}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; what older bundles do not know is named only where it is there."""
        values = dataclasses.asdict(self)
        if self.multi_token is None:
            del values["multi_token"]
        if self.trunk.moe is None:
            del values["trunk"]["moe"]
        if self.vision:
            later = {"encoder": "siglip", "merge": 1, "connector": "mlp"}
            for name, value in later.items():
                if values["vision"][name] == value:
                    del values["vision"][name]
            if not self.vision.patches.tokens:
                del values["vision"]["patches"]["tokens"]
        return values

    @property
    def cached_layers(self) -> int:
        """Layers that keep keys and values while decoding: those of the trunk, and of multi-token prediction."""
        multi = self.multi_token
        return self.trunk.num_layers + (multi.depth if multi and multi.has_blocks else 0)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`. Raises ValueError for unknown or missing fields."""
        try:
            return _built(cls, values)
        except TypeError as error:
            raise ValueError(f"not a model config: {error}") from error


NESTED: dict[str, type] = {
    "trunk": TransformerConfig,
    "flow": FlowConfig,
    "vision": VisionConfig,
    "multi_token": MultiTokenConfig,
    "moe": MoEConfig,
    "rope": RopeConfig,
    "scaling": RopeScaling,
    "qk_norm": QKNormConfig,
    "patches": PatchSpec,
}
"""Field name -> the dataclass that it holds."""

Config = TypeVar("Config")


def _built(kind: type[Config], values: Any) -> Config:
    """A dataclass of plain values, its nested dataclasses too. Raises TypeError for what is no such thing."""
    if not isinstance(values, dict):
        raise TypeError(f"{kind.__name__} is an object with fields, got {str(values)[:80]!r}")
    made = {
        name: _built(NESTED[name], value) if name in NESTED and value is not None else value
        for name, value in values.items()
    }
    return from_plain(kind, made)
