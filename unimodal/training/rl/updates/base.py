"""What every update of a policy is: which answers count, what they weigh, and a loss for each batch of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from unimodal.generation.answer_rows import SampledAnswer
from unimodal.model.model import UnifiedModel
from unimodal.training.rl.advantages.generalized import ValueConfig
from unimodal.training.rl.losses.aggregation import Aggregation, token_weights
from unimodal.training.rl.losses.base import PolicyLoss, TokenLosses, TokenRatios
from unimodal.training.rl.losses.divergence import KLConfig
from unimodal.training.rl.rollouts import Rollout
from unimodal.training.rl.statistics import Sums


@dataclass(frozen=True, kw_only=True)
class UpdateConfig:
    """What is minimised: the policy's loss, a KL penalty, a value's loss, less an entropy bonus."""

    loss: PolicyLoss
    aggregation: Aggregation = "token-mean"
    kl: KLConfig | None = None
    value: ValueConfig | None = None
    entropy: float = 0.0


class Packer(Protocol):
    """Answers -> batches of packed rows."""

    def batches(self, sampled: Sequence[SampledAnswer], numbers: Sequence[int]) -> Iterator[Any]:
        """Batches of these answers."""
        ...

    def empty(self, like: Any) -> Any:
        """A batch of padding, for a rank that has none left."""
        ...


@dataclass(kw_only=True)
class RolloutUpdate:
    """Losses of one rollout's answers. `advantages` (N,) are those of its trajectories."""

    config: UpdateConfig
    rollout: Rollout
    advantages: Tensor
    packer: Packer
    max_length: int = 1
    """What the aggregation `constant` divides by: what is learnt of an answer at most, the same on all ranks."""
    reference: UnifiedModel | None = None
    like: Any = None
    """A batch, once an empty one was needed."""

    def counted(self, numbers: Sequence[int]) -> list[int]:
        """Those of these trajectories whose rewards are there."""
        valid = self.rollout.valid.flatten().tolist()
        return [number for number in numbers if valid[number]]

    def lengths(self, numbers: Sequence[int]) -> list[int]:
        """What is learnt of each of these answers: its tokens."""
        return [len(self.rollout.trajectories[number]) for number in numbers]

    def divisor(self, numbers: Sequence[int]) -> float:
        """What these trajectories add to the divisor of a step."""
        return float(self.weights_of(numbers)[1].sum())

    def weights_of(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The weight of each token of these answers, and what each answer adds to the divisor: (B,) each."""
        lengths = torch.tensor(self.lengths(numbers), dtype=torch.int64)
        return token_weights(lengths, self.config.aggregation, self.max_length)

    def prepare(self, model: UnifiedModel, device: torch.device) -> None:
        """What is computed once before the first update on a rollout."""

    def batches(self, numbers: Sequence[int]) -> Iterator[Any]:
        """Batches of these answers: each has `packed` rows, `numbers` of its answers, and moves `to` a device."""
        return self.packer.batches(self.rollout.trajectories, numbers)

    def empty_batch(self) -> Any:
        """Padding, so that ranks do the same number of passes."""
        if self.like is None:
            self.like = next(iter(self.batches([0])))
        return self.packer.empty(self.like)

    def of_tokens(self, of_answers: Tensor, batch: Any, like: Tensor) -> Tensor:
        """A number for each answer of a batch (B,) -> for each of its tokens (M,), as `like` is; no device waits."""
        return of_answers.to(like.device, like.dtype)[batch.answers] if batch.numbers else torch.zeros_like(like)

    def weighted(self, losses: Tensor, batch: Any) -> Tensor:
        """The sum of the losses (M,) of a batch, each with the weight of its answer's tokens."""
        return (losses * self.of_tokens(self.weights_of(batch.numbers)[0], batch, losses)).sum()

    def loss(self, model: UnifiedModel, batch: Any, sums: Sums) -> Tensor:
        """The sum over a batch of weighted losses; `divisor` makes the step's mean of it."""
        raise NotImplementedError


def with_all_heads(model: UnifiedModel, features: Tensor) -> Tensor:
    """Features (B, T, D) with every token and every head of a model in their graph.

    DDP waits for a gradient of each weight, and an update may need one head alone.
    """
    if len(model.heads) == 1:
        return features
    some = features[:1, :1]
    return features + 0 * (features.sum() + sum(head(some).sum() for head in model.heads.values()))


def log_ratios(tokens: TokenRatios, found: TokenLosses, sums: Sums) -> None:
    """How far the policy is from the one that sampled; before the first update of all, that is the noise of computing
    the same twice."""
    gaps = (tokens.log_probs.detach() - tokens.old).abs()
    if "log_prob_gap" not in sums.sums:
        sums.add("log_prob_gap", gaps)
    sums.add("ratio_distance", (tokens.ratios.detach() - 1).abs())
    sums.add("clipped_high", found.clipped_high.float())
    sums.add("clipped_low", found.clipped_low.float())
