"""How far a policy has gone from its reference: estimates of the KL divergence from sampled tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Sampled = Literal["k1", "k2", "k3"]
Estimator = Literal["exact", "k1", "k2", "k3"]


@dataclass(frozen=True, kw_only=True)
class KLConfig:
    """A penalty on the distance from the model that the run starts from, on each token beside the policy's loss.

    `text` and `image` are its weights by modality: words of a model that learns to draw may be held fast while its
    codes move. `exact` sums over all ids at each token, which the logits are there for; the others take what was
    sampled alone, as frameworks do whose reference is a service.
    """

    text: float = 0.01
    image: float = 0.01
    estimator: Estimator = "exact"

    def __post_init__(self) -> None:
        if min(self.text, self.image) < 0 or max(self.text, self.image) == 0:
            raise ValueError(f"weights of a KL penalty are not below 0, and one is above, got {self}; or leave out kl")


def kl_estimate(log_probs: Tensor, reference: Tensor, estimator: Sampled) -> Tensor:
    """log p and log p_ref of sampled tokens (M,) -> their share of KL(p | p_ref), by the estimator's own value.

    With d = log p_ref - log p: k1 = -d, k2 = d^2 / 2, k3 = e^d - d - 1 (Schulman, "Approximating KL divergence").
    """
    difference = reference - log_probs
    if estimator == "k1":
        return -difference
    return 0.5 * difference.square() if estimator == "k2" else difference.exp() - difference - 1


def kl_penalty(log_probs: Tensor, reference: Tensor, estimator: Sampled) -> Tensor:
    """As `kl_estimate`, with the gradient of the divergence.

    Over samples of the policy, the gradient of k2 is that of the KL divergence; the gradient of k1 has mean 0 and that
    of k3 is the one of KL(p_ref | p). So the gradient is k2's whatever the value (verl's `k3+`).
    """
    value, slope = kl_estimate(log_probs, reference, estimator), kl_estimate(log_probs, reference, "k2")
    return value.detach() - slope.detach() + slope
