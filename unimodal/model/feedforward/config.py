"""The shape of a mixture of experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

KINDS = ("text", "image")
"""Modalities with a load of their own: ids of text, and image codes with the tokens of branches."""


@dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """Feed-forward parts of which each token takes `top_k` of `experts`, and `shared` ones that all tokens take.

    The router's scores are `sigmoid` (DeepSeek-V3, arXiv 2412.19437, section 2.1.2) or `softmax` (Mixtral, Qwen3).
    A token's experts are those of the largest score plus bias; the gates are their scores without it, normalised to a
    sum of 1 where `normalized` says so, times `scale`. With `bias_by` "modality" text and images have biases of their
    own, so that neither crowds out the other; with "none" the bias stays 0, as in architectures that have none.
    `image_ids_from` is the first id of an image code, 0 where it is not
    known, and comes from the data. The first `first_dense` layers are dense, of the trunk's hidden_dim.
    """

    experts: int = 8
    top_k: int = 2
    shared: int = 1
    hidden_dim: int = 352
    first_dense: int = 1
    scores: Literal["sigmoid", "softmax"] = "sigmoid"
    normalized: bool = True
    scale: float = 1.0
    bias_by: Literal["all", "modality", "none"] = "all"
    image_ids_from: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= self.experts:
            raise ValueError(f"a token takes 1 to {self.experts} of {self.experts} experts, got top_k {self.top_k}")
        if min(self.hidden_dim, self.scale) <= 0 or min(self.shared, self.first_dense, self.image_ids_from) < 0:
            raise ValueError(f"experts have a width and a scale above 0 and counts of at least 0, got {self}")
        if self.scores not in ("sigmoid", "softmax") or self.bias_by not in ("all", "modality", "none"):
            raise ValueError(f"scores are sigmoid or softmax, bias_by is all, modality or none, got {self}")

    @property
    def num_biases(self) -> int:
        """Bias vectors of a router."""
        return len(KINDS) if self.bias_by == "modality" else 1
