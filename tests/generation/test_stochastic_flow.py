"""The noisy flow: its steps are Gaussian with the stated probability, and its pictures are the flow's own."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from unimodal.generation.flow_sampling import FlowSamplingConfig, time_grid
from unimodal.generation.stochastic_flow import (
    NoiseWindow,
    StepTime,
    follow,
    log_prob,
    noisy_steps,
    step_mean,
)


def test_the_grid_has_noise_everywhere_but_at_its_end() -> None:
    steps = noisy_steps([1.0, 0.75, 0.25, 0.0], 0.7)
    assert [(at.time, at.following) for at in steps] == [(1.0, 0.75), (0.75, 0.25)]
    assert steps[0].spread == pytest.approx(0.7 * math.sqrt(1 / 0.25))  # 1 - t of the second time
    assert steps[1].spread == pytest.approx(0.7 * math.sqrt(0.75 / 0.25))
    assert steps[1].deviation == pytest.approx(steps[1].spread * math.sqrt(0.5))


def test_the_mean_is_that_of_the_stochastic_equation() -> None:
    """Flow-GRPO's form, with dt = -(t - s): x (1 + g^2 / (2 t) dt) + v (1 + g^2 (1 - t) / (2 t)) dt."""
    at = StepTime(0.6, 0.4, 0.5)
    x, v = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    squared, passed = 0.25, -0.2
    expected = x * (1 + squared / 1.2 * passed) + v * (1 + squared * 0.4 / 1.2) * passed
    torch.testing.assert_close(step_mean(x, v, at), expected, rtol=1e-12, atol=1e-12)


def test_the_log_probability_is_the_normal_distributions() -> None:
    mean, after = torch.randn(3, 5, 4, dtype=torch.float64), torch.randn(3, 5, 4, dtype=torch.float64)
    slow = torch.distributions.Normal(mean, 0.3).log_prob(after)
    torch.testing.assert_close(log_prob(after, mean, 0.3), slow.mean((-2, -1)), rtol=1e-12, atol=1e-12)
    deviations = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)[:, None, None]
    slow = torch.distributions.Normal(mean, deviations).log_prob(after)
    torch.testing.assert_close(log_prob(after, mean, deviations), slow.mean((-2, -1)), rtol=1e-12, atol=1e-12)


def test_without_noise_the_solver_is_eulers() -> None:
    times = time_grid(6, 2.0)

    def velocity(x: Tensor, time: float) -> Tensor:
        return x * time

    noise = torch.randn(2, 3, 4, dtype=torch.float64)
    x = noise
    for time, following in pairwise(times):
        x = x + (following - time) * velocity(x, time)
    found, _ = follow(velocity, noise, times, 1e-9, lambda: torch.zeros_like(noise))
    torch.testing.assert_close(found, x, rtol=1e-9, atol=1e-9)


def test_the_noisy_flow_ends_in_the_same_distribution() -> None:
    """Data N(2, 0.5^2), whose exact velocity is known: deviation and mean come out for any noise, within sampling."""
    mean, deviation = 2.0, 0.5

    def velocity(x: Tensor, t: float) -> Tensor:
        variance = (1 - t) ** 2 * deviation**2 + t**2
        towards = (x - (1 - t) * mean) / variance
        clean, noise = mean + (1 - t) * deviation**2 * towards, t * towards
        return noise - clean

    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(100, 200, 1, dtype=torch.float64, generator=generator)
    for level in (0.3, 0.7):
        found, _ = follow(
            velocity,
            noise,
            time_grid(200, 1.0),
            level,
            lambda: torch.randn(noise.shape, dtype=torch.float64, generator=generator),
        )
        assert abs(float(found.mean()) - mean) < 0.02 and abs(float(found.std()) - deviation) < 0.02


def test_steps_remember_what_they_drew() -> None:
    noise = torch.randn(2, 3, 4)
    _, steps = follow(lambda x, t: -x, noise, [1.0, 0.6, 0.3, 0.0], 0.5, lambda: torch.randn(2, 3, 4))
    assert [len(own) for own in steps] == [2, 2]
    for number, own in enumerate(steps):
        assert torch.equal(own[0].before, noise[number]) and torch.equal(own[1].before, own[0].after)
        for step in own:
            mean = step_mean(step.before, -step.before, step.at)
            assert step.log_prob == pytest.approx(float(log_prob(step.after, mean, step.at.deviation)), abs=1e-6)


def test_images_have_noise_in_their_windows_alone() -> None:
    times, windows = time_grid(6, 1.0), [NoiseWindow(0, 1, 2), None, NoiseWindow(0, 4, 1)]
    noise = torch.randn(1, 3, 2, dtype=torch.float64).expand(3, -1, -1)
    draws = torch.randn(5, 3, 3, 2, dtype=torch.float64)
    stream = iter(draws)
    found, paths = follow(lambda x, t: x * t, noise, times, 0.5, lambda: next(stream), windows)
    assert [[round(step.at.time * 6) for step in path] for path in paths] == [[5, 4], [6, 5, 4, 3, 2], [2]]
    plain, _ = follow(lambda x, t: x * t, noise[:1], times, 1e-12, lambda: torch.zeros(1, 3, 2))
    assert not torch.allclose(found[0], plain[0], atol=1e-3) and not torch.allclose(found[2], plain[0], atol=1e-3)
    outside = NoiseWindow(0, 9, 1)
    stream = iter(draws)
    alone, nothing = follow(lambda x, t: x * t, noise, times, 0.5, lambda: next(stream), [outside] * 3)
    torch.testing.assert_close(alone, plain.expand(3, -1, -1), rtol=1e-9, atol=1e-9)
    assert nothing == [[], [], []]


@pytest.mark.parametrize("wrong", [{"solver": "heun"}, {"steps": 1}])
def test_noise_goes_with_euler_and_two_steps(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="noise is added by the solver euler"):
        FlowSamplingConfig(noise=0.7, **wrong)
