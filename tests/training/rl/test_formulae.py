"""Advantages, losses, divergences and values against reference values, slow loops and finite differences."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from unimodal.training.rl.advantages.base import Advantage
from unimodal.training.rl.advantages.generalized import (
    ValueConfig,
    generalized_advantages,
    value_losses,
    whitened,
)
from unimodal.training.rl.advantages.group_relative import GroupRelative
from unimodal.training.rl.advantages.leave_one_out import LeaveOneOut
from unimodal.training.rl.advantages.mean_removed import MeanRemoved
from unimodal.training.rl.advantages.per_reward import PerReward
from unimodal.training.rl.losses.aggregation import Aggregation, token_weights
from unimodal.training.rl.losses.base import PolicyLoss, TokenRatios
from unimodal.training.rl.losses.clipped import ClippedRatio
from unimodal.training.rl.losses.clipped_weights import ClippedWeights
from unimodal.training.rl.losses.divergence import kl_estimate, kl_penalty
from unimodal.training.rl.losses.sequence import SequenceRatio
from unimodal.training.rl.losses.soft_gate import SoftGate
from unimodal.training.rl.overlong import OverlongConfig

DAPO = ClippedRatio(low=0.2, high=0.28)


def of_group(advantage: Advantage, rewards: Sequence[float]) -> list[float]:
    values = torch.tensor([rewards], dtype=torch.float64)
    return advantage.of(values[..., None], torch.ones(1, 1), torch.ones_like(values, dtype=torch.bool))[0].tolist()


@pytest.mark.parametrize(
    ("advantage", "rewards", "expected"),
    [
        (GroupRelative(), [1, 0, 0, 1], [0.8660239, -0.8660239, -0.8660239, 0.8660239]),
        (GroupRelative(), [1, 0, 0, 0], [1.499997, -0.499999, -0.499999, -0.499999]),
        (MeanRemoved(), [1, 0, 0, 1], [0.5, -0.5, -0.5, 0.5]),
        (LeaveOneOut(), [1, 0, 0, 0], [1, -1 / 3, -1 / 3, -1 / 3]),
    ],
)
def test_advantages_are_the_reference_values(
    advantage: Advantage, rewards: Sequence[float], expected: Sequence[float]
) -> None:
    assert of_group(advantage, rewards) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("advantage", [GroupRelative(), MeanRemoved(), LeaveOneOut()], ids=lambda a: type(a).__name__)
def test_advantages_equal_a_slow_loop_with_answers_that_do_not_count(advantage: Advantage) -> None:
    generator = torch.Generator().manual_seed(1)
    rewards = torch.rand(5, 6, 2, generator=generator, dtype=torch.float64)
    weights = torch.tensor([[1.0, 0.0], [0.5, 2.0], [0.0, 1.0], [1.0, 1.0], [2.0, 0.1]], dtype=torch.float64)
    valid = torch.rand(5, 6, generator=generator) > 0.3
    valid[4] = False
    found = advantage.of(rewards, weights, valid)
    for prompt in range(5):
        totals = [float((rewards[prompt, member] * weights[prompt]).sum()) for member in range(6)]
        there = [totals[member] for member in range(6) if valid[prompt, member]]
        for member in range(6):
            if not valid[prompt, member]:
                assert found[prompt, member] == 0
                continue
            mean = sum(there) / len(there)
            expected = totals[member] - mean
            if isinstance(advantage, LeaveOneOut):
                expected = totals[member] - (sum(there) - totals[member]) / (len(there) - 1)
            if isinstance(advantage, GroupRelative):
                expected /= math.sqrt(sum((x - mean) ** 2 for x in there) / (len(there) - 1)) + 1e-6
            assert found[prompt, member].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "advantage", [GroupRelative(), MeanRemoved(), LeaveOneOut(), PerReward()], ids=lambda a: type(a).__name__
)
def test_a_group_of_equal_rewards_has_advantages_of_exactly_zero(advantage: Advantage) -> None:
    assert of_group(advantage, [0.1 + 0.2] * 7) == [0.0] * 7


def test_one_reward_does_not_drown_another() -> None:
    """A reward of a hundredth of the spread counts as much, once each is normalised apart."""
    rewards = torch.tensor([[[0.0, 0.00], [1.0, 0.01], [0.0, 0.01], [1.0, 0.00]]], dtype=torch.float64)
    everyone = torch.ones(1, 4, dtype=torch.bool)
    apart = PerReward().of(rewards, torch.ones(1, 2), everyone)[0]
    together = GroupRelative().of(rewards, torch.ones(1, 2), everyone)[0]
    assert apart[3] == pytest.approx(apart[2].item(), abs=1e-3)
    assert together[3] - together[2] > 1.5
    assert apart.mean().item() == pytest.approx(0, abs=1e-9)
    assert apart.std().item() == pytest.approx(1, abs=1e-4)


def test_generalized_advantages_are_the_reference_values() -> None:
    rewards, values = torch.tensor([[0.0, 0, 1]]).double(), torch.full((1, 3), 0.5).double()
    found = generalized_advantages(rewards, values, torch.ones(1, 3, dtype=torch.bool), ValueConfig(gamma=1, lam=0.95))
    assert found[0][0].tolist() == pytest.approx([0.45125, 0.475, 0.5])
    assert found[1][0].tolist() == pytest.approx([0.95125, 0.975, 1.0])


def test_tokens_that_do_not_count_are_passed_over() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards, values = (torch.rand(1, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    counted = torch.tensor([[True, False, True, True, False, True]])
    found, returns = generalized_advantages(rewards, values, counted, ValueConfig(gamma=0.9, lam=0.8))
    kept = counted[0]
    alone, alone_returns = generalized_advantages(
        rewards[:, kept], values[:, kept], torch.ones(1, 4, dtype=torch.bool), ValueConfig(gamma=0.9, lam=0.8)
    )
    torch.testing.assert_close(found[:, kept], alone)
    torch.testing.assert_close(returns[:, kept], alone_returns)
    assert found[:, ~kept].abs().sum() == 0
    changed = values.masked_fill(~counted, 99.0)
    again = generalized_advantages(rewards, changed, counted, ValueConfig(gamma=0.9, lam=0.8))[0]
    torch.testing.assert_close(again, found)


def test_whitened_numbers_have_mean_zero_and_deviation_one_over_what_counts() -> None:
    values, counted = torch.arange(6.0).double(), torch.tensor([True, True, False, True, True, False])
    chosen = values[counted]
    found = whitened(values, counted, chosen.mean().item(), chosen.std().item())
    assert found[counted].mean().item() == pytest.approx(0, abs=1e-12)
    assert found[counted].std().item() == pytest.approx(1, abs=1e-6)
    assert found[~counted].tolist() == [0, 0]


def test_the_loss_of_a_value_takes_the_larger_error() -> None:
    values, returns, old = torch.tensor([1.0, 0.5]), torch.tensor([0.0, 0.6]), torch.tensor([0.0, 0.5])
    assert value_losses(values, returns, old, 0.2).tolist() == pytest.approx([0.5, 0.005])


def one_token(loss: PolicyLoss, ratio: float, advantage: float, log_prob: float = -1.0) -> tuple[float, float]:
    """The loss of a token and its slope by the token's log-probability."""
    log_probs = torch.tensor([log_prob], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([log_prob - math.log(ratio)], dtype=torch.float64)
    tokens = TokenRatios(
        log_probs, old, torch.tensor([advantage], dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    )
    found = loss.of(tokens).losses.sum()
    [slope] = torch.autograd.grad(found, [log_probs])
    return found.item(), slope.item()


@pytest.mark.parametrize(
    ("loss", "ratio", "advantage", "expected"),
    [
        (DAPO, 1.5, 1, -1.28),
        (DAPO, 0.5, 1, -0.5),
        (DAPO, 1.5, -1, 1.5),
        (DAPO, 0.5, -1, 0.8),
        (DAPO, 4, -1, 3),
        (ClippedRatio(dual=None), 4, -1, 4),
        (SoftGate(), 1, 1, -2.0),
        (SoftGate(), 1.5, 1, -2.4898372),
    ],
)
def test_losses_are_the_reference_values(loss: PolicyLoss, ratio: float, advantage: float, expected: float) -> None:
    assert one_token(loss, ratio, advantage)[0] == pytest.approx(expected, abs=1e-6)


def test_clipped_weights_keep_the_gradient_of_a_clipped_token() -> None:
    loss, slope = one_token(ClippedWeights(low=0.2, high=0.28), 1.5, 1, log_prob=-2)
    assert (loss, slope) == pytest.approx((2.56, -1.28))


@pytest.mark.parametrize(
    ("ratio", "advantage", "inside"),
    [(1.279, 1, True), (1.281, 1, False), (0.5, 1, True), (0.801, -1, True), (0.799, -1, False), (1.5, -1, True)],
)
def test_the_clip_takes_the_gradient_on_its_active_side_alone(ratio: float, advantage: float, inside: bool) -> None:
    slope = one_token(DAPO, ratio, advantage)[1]
    assert slope == pytest.approx(-advantage * ratio if inside else 0.0)


def test_the_ratio_of_a_whole_answer_is_a_geometric_mean() -> None:
    log_probs = torch.tensor([-1.0, -2.0, -0.5, -1.0], dtype=torch.float64, requires_grad=True)
    steps = torch.tensor([0.3, -0.1, 0.1, 0.0], dtype=torch.float64)
    answers, advantages = torch.tensor([0, 0, 0, 1]), torch.tensor([1.0, 1.0, 1.0, -1.0], dtype=torch.float64)
    tokens = TokenRatios(log_probs, log_probs.detach() - steps, advantages, answers)
    losses = SequenceRatio(low=0.3, high=0.4).of(tokens).losses
    assert losses.tolist() == pytest.approx([-1.1051709] * 3 + [1.0])
    [slopes] = torch.autograd.grad(losses.sum(), [log_probs])
    assert slopes.tolist() == pytest.approx([-1.1051709] * 3 + [1.0])


@pytest.mark.parametrize(
    "loss", [DAPO, ClippedWeights(), SequenceRatio(), SoftGate()], ids=lambda loss: type(loss).__name__
)
def test_the_first_update_has_the_gradient_of_reinforce(loss: PolicyLoss) -> None:
    log_probs = torch.tensor([-1.0, -2.0, -0.5], dtype=torch.float64, requires_grad=True)
    advantages, answers = torch.tensor([0.5, -2.0, 1.0], dtype=torch.float64), torch.tensor([0, 1, 1])
    tokens = TokenRatios(log_probs, log_probs.detach(), advantages, answers)
    assert tokens.ratios.tolist() == [1.0] * 3
    [slopes] = torch.autograd.grad(loss.of(tokens).losses.sum(), [log_probs])
    torch.testing.assert_close(slopes, -advantages)


def test_estimates_of_the_divergence_are_the_reference_values() -> None:
    here, there = torch.zeros(2).double(), torch.tensor([-0.2, 0.2]).double()
    assert kl_estimate(here, there, "k3").tolist() == pytest.approx([0.0187308, 0.0214028], abs=1e-7)
    assert kl_estimate(here, there, "k2").tolist() == pytest.approx([0.02, 0.02])
    assert kl_estimate(here, there, "k1").tolist() == pytest.approx([0.2, -0.2])


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_penalty_has_the_gradient_of_the_divergence(estimator: str) -> None:
    """In the mean over what the policy samples; exactly, by summing over all that it can sample."""
    logits = torch.tensor([0.3, -1.0, 0.8], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.0, 0.5, -0.4], dtype=torch.float64).log_softmax(-1)
    log_probs = logits.log_softmax(-1)
    exact = (log_probs.exp() * (log_probs - reference)).sum()
    [wanted] = torch.autograd.grad(exact, [logits], retain_graph=True)
    sampled = (log_probs.detach().exp() * kl_penalty(log_probs, reference, estimator)).sum()  # pyright: ignore[reportArgumentType]
    [found] = torch.autograd.grad(sampled, [logits], retain_graph=True)
    torch.testing.assert_close(found, wanted)
    if estimator != "k2":
        naive = (log_probs.detach().exp() * kl_estimate(log_probs, reference, estimator)).sum()  # pyright: ignore[reportArgumentType]
        [wrong] = torch.autograd.grad(naive, [logits])
        assert (wrong - wanted).abs().max() > 0.01


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [("token-mean", 1.75), ("sequence-mean", 2.5), ("sequence-sum", 3.5), ("constant", 0.875)],
)
def test_aggregations_are_the_reference_values(aggregation: Aggregation, expected: float) -> None:
    losses = [torch.tensor([4.0]), torch.tensor([1.0, 1.0, 1.0])]
    weights, divisors = token_weights(torch.tensor([1, 3]), aggregation, 4)
    total = sum(weight * part.sum() for weight, part in zip(weights, losses, strict=True))
    assert float(total / divisors.sum()) == pytest.approx(expected)


@pytest.mark.parametrize(("length", "expected"), [(100, 0), (16384, 0), (18432, -0.5), (20480, -1)])
def test_the_punishment_of_length_is_a_ramp(length: int, expected: float) -> None:
    assert OverlongConfig(cache=4096).penalty(length, 20480) == pytest.approx(expected)


def test_guidance_has_the_reference_values() -> None:
    """cond (2, 0, 0), uncond (1, 0, 0), w = 3: what leaving guidance out of the policy gets wrong."""
    conditional = torch.tensor([2.0, 0, 0], dtype=torch.float64, requires_grad=True)
    guided = torch.tensor([1.0, 0, 0], dtype=torch.float64) * (1 - 3) + 3 * conditional
    p_guided, p_plain = guided.log_softmax(-1), conditional.log_softmax(-1)
    assert p_guided.exp().tolist() == pytest.approx([0.964663, 0.017668, 0.017668], abs=1e-6)
    assert (p_plain - p_guided).tolist()[:2] == pytest.approx([-0.2035685, 1.7964315], abs=1e-6)
    divergence = (p_guided.exp() * (p_guided - p_plain)).sum()
    assert divergence.item() == pytest.approx(0.1328948, abs=1e-6)
    slopes = [gradient_of(p_guided[code], conditional)[0].item() for code in (0, 1)]
    assert slopes == pytest.approx([0.1060105, -2.8939895], abs=1e-6)


def gradient_of(value: Tensor, variable: Tensor) -> Tensor:
    return torch.autograd.grad(value, [variable], retain_graph=True)[0]
