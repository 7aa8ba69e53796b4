"""The update of token answers: those of a rollout become a loss, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unimodal.generation.answer_probs import AnswerTokens, HowRead, Read, answer_log_probs
from unimodal.generation.answer_rows import MAIN, AnswerBatch
from unimodal.generation.modality import ModalityMachine
from unimodal.generation.sampling import exact
from unimodal.model.linear import BoundaryLinear
from unimodal.model.model import UnifiedModel
from unimodal.model.sharded import shard_group
from unimodal.model.token_head import TokenHead
from unimodal.training.rl.advantages.generalized import (
    generalized_advantages,
    value_losses,
    whitened,
)
from unimodal.training.rl.losses.base import TokenRatios
from unimodal.training.rl.losses.divergence import kl_penalty
from unimodal.training.rl.statistics import Sums, sum_over_ranks
from unimodal.training.rl.updates.base import RolloutUpdate, log_ratios, with_all_heads

# Shapes: M tokens of all answers of a batch, B answers, T tokens of the longest.


@dataclass(kw_only=True)
class TokenUpdate(RolloutUpdate):
    """Losses of answers that were sampled token by token; `advantages` are theirs, unless a value gives them."""

    machine: ModalityMachine
    forward: Callable[[UnifiedModel, AnswerBatch], Tensor]
    head: TokenHead
    value_head: nn.Module | None = None
    token_advantages: dict[int, Tensor] | None = None
    """Of each trajectory, where a value gives them."""
    returns: dict[int, Tensor] | None = None
    old_values: dict[int, Tensor] | None = None

    def prepare(self, model: UnifiedModel, device: torch.device) -> None:
        """Values of all answers before any update, where a value is learnt."""
        if self.config.value is not None:
            everything = self.counted(range(len(self.rollout.trajectories)))
            self.estimate_values(model, [batch.to(device) for batch in self.batches(everything)])

    def loss(self, model: UnifiedModel, batch: AnswerBatch, sums: Sums) -> Tensor:
        """The sum over a batch's tokens of their weighted losses; `divisor` makes the step's mean of it."""
        features = with_all_heads(model, self.forward(model, batch))
        how = HowRead(entropy_gradient=bool(self.config.entropy))
        read, reference = Read(self.head, features), self._reference(batch)
        found_tokens = answer_log_probs(read, batch, self.machine, reference, how)
        log_probs, entropy = found_tokens.log_probs, found_tokens.entropy
        tokens = TokenRatios(
            log_probs, batch.old.to(log_probs.dtype), self._advantages(batch, log_probs), batch.answers
        )
        found = self.config.loss.of(tokens)
        losses = found.losses
        inside = batch.states.in_image
        log_ratios(tokens, found, sums)
        self._log_entropy(entropy, inside, sums)
        if self.config.entropy:
            losses = losses - self.config.entropy * entropy
        if self.config.kl is not None:
            losses = losses + self._penalties(found_tokens, inside, sums)
        if self.config.value is not None:
            losses = losses + self.config.value.weight * self._value_losses(features, batch, sums)
        return self.weighted(losses, batch)

    def _advantages(self, batch: AnswerBatch, like: Tensor) -> Tensor:
        """(M,) the advantage of each token."""
        if self.token_advantages is None or not batch.numbers:
            return self.of_tokens(self.advantages[batch.numbers], batch, like)
        return torch.cat([self.token_advantages[number] for number in batch.numbers]).to(like.device, like.dtype)

    @torch.no_grad()
    def _reference(self, batch: AnswerBatch) -> Read | None:
        if self.reference is None:
            return None
        return Read(self.reference.token_head, self.forward(self.reference, batch))

    def _penalties(self, tokens: AnswerTokens, inside: Tensor, sums: Sums) -> Tensor:
        """(M,) of the distance from the reference."""
        assert self.config.kl is not None
        sums.add("kl_text", tokens.divergence, ~inside)
        sums.add("kl_image", tokens.divergence, inside)
        weights = torch.where(inside, self.config.kl.image, self.config.kl.text)
        if self.config.kl.estimator == "exact":
            return weights * tokens.divergence
        return weights * kl_penalty(tokens.log_probs, tokens.reference, self.config.kl.estimator)

    # -- a value

    def values(self, features: Tensor, batch: AnswerBatch) -> Tensor:
        """(M,) the value before each token; the trunk takes no gradient from it."""
        assert self.value_head is not None
        return exact(self.value_head(features.flatten(0, 1)[batch.index[:, MAIN]].detach())).squeeze(-1)

    @torch.no_grad()
    def estimate_values(self, model: UnifiedModel, batches: Sequence[AnswerBatch]) -> None:
        """Values of all answers as they are now, and from them advantages and returns of their tokens.

        The reward of an answer comes after its last token. Advantages are whitened over all tokens of all ranks.
        """
        assert self.config.value is not None
        totals = self.rollout.totals.flatten()
        found: dict[int, Tensor] = {}
        for batch in batches:
            values = self.values(self.forward(model, batch), batch).double().cpu()
            parts = values.split([len(self.rollout.trajectories[number]) for number in batch.numbers])
            found |= dict(zip(batch.numbers, parts, strict=True))
        numbers = sorted(found)
        if not numbers:  # a rank whose rewards are all missing
            self._moments(torch.zeros(0))
            self.old_values, self.token_advantages, self.returns = {}, {}, {}
            return
        lengths = torch.tensor([len(found[number]) for number in numbers])
        values = torch.nn.utils.rnn.pad_sequence([found[number] for number in numbers], batch_first=True)
        counted = torch.arange(values.shape[1]) < lengths[:, None]
        rewards = torch.zeros_like(values)
        rewards[torch.arange(len(numbers)), lengths - 1] = totals[numbers]
        advantages, returns = generalized_advantages(rewards, values, counted, self.config.value)
        advantages = whitened(advantages, counted, *self._moments(advantages[counted]))
        pairs = list(zip(numbers, lengths.tolist(), strict=True))
        self.old_values = found
        self.token_advantages = {n: advantages[row, :length] for row, (n, length) in enumerate(pairs)}
        self.returns = {n: returns[row, :length] for row, (n, length) in enumerate(pairs)}

    def _moments(self, values: Tensor) -> tuple[float, float]:
        """Mean and standard deviation over all ranks."""
        device = self.machine.device
        sums = sum_over_ranks([float(values.sum()), float(len(values))], device)
        mean = sums[0] / max(sums[1], 1)
        [squares] = sum_over_ranks([float((values - mean).square().sum())], device)
        return mean, (squares / max(sums[1] - 1, 1)) ** 0.5

    def _value_losses(self, features: Tensor, batch: AnswerBatch, sums: Sums) -> Tensor:
        assert self.config.value is not None and self.returns is not None and self.old_values is not None
        values = self.values(features, batch)
        if not batch.numbers:
            sums.put("value_loss", 0.0, 0.0)
            return values
        returns, old = (
            torch.cat([table[number] for number in batch.numbers]).to(values.device, values.dtype)
            for table in (self.returns, self.old_values)
        )
        losses = value_losses(values, returns, old, self.config.value.clip)
        sums.add("value_loss", losses)
        return losses

    # -- logs

    def _log_entropy(self, entropy: Tensor, inside: Tensor, sums: Sums) -> None:
        sums.add("entropy_text", entropy, ~inside)
        sums.add("entropy_image", entropy, inside)


def new_value_head(model: UnifiedModel) -> nn.Module:
    """Features (..., D) -> values (..., 1), all 0 at first. Raises ValueError for a sharded model."""
    if shard_group(list(model.parameters())) is not None:
        raise ValueError("a value head is not sharded: train with trainer.strategy ddp, or without model.value")
    head = BoundaryLinear(model.config.trunk.dim, 1)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    return head
