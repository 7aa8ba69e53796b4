"""The shape of a transformer, as frozen dataclasses: a config that exists is a config that is valid."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

NormPlacement = Literal["pre", "swin"]


@dataclass(frozen=True, kw_only=True)
class QKNormConfig:
    """Norms on queries and keys, before the rotation.

    `layer` is Chameleon's LayerNorm with parameters for each head (arXiv 2405.09818, section 2.3), `rms` the RMSNorm
    of Qwen3 and BAGEL, whose weight all heads share.
    """

    eps: float = 1e-5
    kind: Literal["layer", "rms"] = "layer"

    def __post_init__(self) -> None:
        if self.kind not in ("layer", "rms"):
            raise ValueError(f"the QK-norm is 'layer' or 'rms', got {self.kind!r}")


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """BAGEL's branch: images as continuous latents of an autoencoder, drawn by flow matching (arXiv 2505.14683).

    `latent_dim` channels a latent; at most `side` latents along each side of an image. `time_channels` sines and
    cosines tell the time. `place_period`, over 2 pi, is the longest of those that tell the place: with BAGEL's 10,000
    most of them hardly change over a small image. `axial_turn` gives latents rotary positions in rows and columns
    beside the one that an image has in the sequence: the fastest turn in radians from a latent to its neighbour, and 0,
    as in BAGEL, for none. `autoencoder` is the hash of the one whose latents were trained on, or empty.
    """

    latent_dim: int
    side: int
    time_channels: int = 256
    place_period: float = 10_000.0
    axial_turn: float = 0.0
    autoencoder: str = ""

    def __post_init__(self) -> None:
        if self.place_period <= 1:
            raise ValueError(f"the longest period of places is above 1, got {self.place_period}")
        if not 0 <= self.axial_turn <= math.pi:
            raise ValueError(f"latents are turned by 0 to pi from one to the next, got {self.axial_turn}")
        if min(self.latent_dim, self.side) < 1 or self.time_channels < 2 or self.time_channels % 2:
            raise ValueError(f"a flow needs latents, places and an even number of time channels, got {self}")


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """A ViT through which pictures are seen (vision.py), SigLIP's by its names.

    Pictures come in at most `most` patches of `patch` pixels, at most `longest` along a side. The learnt positions are
    a table of `side` x `side`, resized to other shapes; those that the connector adds have periods up to
    `place_period`.
    """

    patch: int = 8
    most: int = 64
    longest: int = 32
    side: int = 8
    width: int = 128
    num_layers: int = 3
    num_heads: int = 2
    hidden_dim: int = 384
    norm_eps: float = 1e-6
    place_period: float = 10_000.0

    def __post_init__(self) -> None:
        sizes = (self.patch, self.most, self.longest, self.side, self.num_layers, self.hidden_dim, self.num_heads)
        if min(sizes) < 1 or self.width % self.num_heads or self.place_period <= 1:
            raise ValueError(f"a ViT has sizes of at least 1 and heads that divide its width, got {self}")


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """A decoder in Chameleon's shape: Llama-2 plus QK-norm, dropout and a choice of where the norms sit.

    `norm_placement` is `pre` (Llama: x + f(norm(x)), Chameleon 7B) or `swin` (x + norm(f(x)), Chameleon 34B).
    `mixture` gives every layer a second set of weights for latents of the flow branch (mixture-of-transformers).
    `dropout` acts after attention and after the feed-forward part (0.1 in Chameleon 7B, 0 in 34B).
    """

    vocab_size: int
    dim: int = 256
    num_layers: int = 6
    num_heads: int = 2
    num_kv_heads: int = 2
    hidden_dim: int = 704
    max_length: int = 512
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    norm_placement: NormPlacement = "pre"
    qk_norm: QKNormConfig | None = QKNormConfig()
    qkv_bias: bool = False
    dropout: float = 0.0
    mixture: bool = False
    flow: FlowConfig | None = None
    vision: VisionConfig | None = None

    def __post_init__(self) -> None:
        if self.dim % self.num_heads or self.num_heads % self.num_kv_heads:
            raise ValueError(f"kv heads must divide heads and heads must divide dim, got {self}")
        if self.head_dim % 2:
            raise ValueError(f"rotary positions need an even head width, got {self.head_dim} from {self}")
        if min(self.vocab_size, self.num_layers, self.hidden_dim, self.max_length) < 1:
            raise ValueError(f"sizes must be at least 1, got {self}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout lies in [0, 1), got {self.dropout}")
        if self.norm_placement not in ("pre", "swin"):
            raise ValueError(f"norm_placement is 'pre' or 'swin', got {self.norm_placement!r}")
        if self.mixture and self.norm_placement != "pre":
            raise ValueError("a mixture of transformers has its norms before each part: norm_placement 'pre'")
        if (self.flow is not None or self.vision is not None) and self.dim % 4:
            raise ValueError(f"places in pictures need a width that 4 divides, got {self.dim}")
        if self.flow is not None and self.flow.axial_turn and self.head_dim % 4:
            raise ValueError(f"rows and columns turn pairs of channels in turn: a head of {self.head_dim} is odd")

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.dim // self.num_heads

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TransformerConfig:
        """The inverse of `to_dict`. Raises ValueError for unknown or missing fields."""
        try:
            values = dict(values)
            for name, kind in (("qk_norm", QKNormConfig), ("flow", FlowConfig), ("vision", VisionConfig)):
                if isinstance(values.get(name), dict):
                    values[name] = kind(**values[name])
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"not a transformer config: {error}") from error
