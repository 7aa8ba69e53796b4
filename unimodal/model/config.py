"""The shape of a transformer, as frozen dataclasses: a config that exists is a config that is valid."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

NormPlacement = Literal["pre", "swin"]


@dataclass(frozen=True, kw_only=True)
class QKNormConfig:
    """Chameleon's LayerNorm on queries and keys (arXiv 2405.09818, section 2.3)."""

    eps: float = 1e-5


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """A decoder in Chameleon's shape: Llama-2 plus QK-norm, dropout and a choice of where the norms sit.

    `norm_placement` is `pre` (Llama: x + f(norm(x)), Chameleon 7B) or `swin` (x + norm(f(x)), Chameleon 34B).
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
    dropout: float = 0.0

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
            if isinstance(values.get("qk_norm"), dict):
                values["qk_norm"] = QKNormConfig(**values["qk_norm"])
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"not a transformer config: {error}") from error
