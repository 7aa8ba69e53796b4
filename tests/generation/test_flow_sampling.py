"""From noise to latents: grids, solvers, conventions and guidance, against closed forms."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from unimodal.generation.flow_sampling import FlowSamplingConfig, guided_velocity, integrate, time_grid
from unimodal.generation.settings import RENORMS

MEAN, STD = torch.tensor([1.5, -0.5]).double(), torch.tensor([0.6, 1.4]).double()


def gaussian_velocity(x: Tensor, time: float) -> Tensor:
    """The exact velocity of a flow from N(0, 1) at t = 1 to N(MEAN, STD) at t = 0.

    x_t is N((1 - t) MEAN, s) with s^2 = (1 - t)^2 STD^2 + t^2, and E[noise - x_0 | x_t] is linear in x_t.
    """
    variance = (1 - time) ** 2 * STD**2 + time**2
    slope = (time - (1 - time) * STD**2) / variance
    return slope * (x - (1 - time) * MEAN) - MEAN


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_a_gaussian_is_drawn_with_its_mean_and_covariance(solver: Any) -> None:
    noise = torch.randn(200_000, 2, generator=torch.Generator().manual_seed(0)).double()
    drawn = integrate(gaussian_velocity, noise, time_grid(100, 1.0), solver)
    covariance = torch.cov(drawn.T)
    torch.testing.assert_close(drawn.mean(0), MEAN, rtol=0, atol=0.02)
    torch.testing.assert_close(covariance.diag().sqrt(), STD, rtol=0.02, atol=0)
    assert abs(float(covariance[0, 1])) < 0.02


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_the_error_falls_with_the_order_of_the_solver(solver: Any, order: int) -> None:
    noise = torch.randn(50, 2, generator=torch.Generator().manual_seed(1)).double()
    exact = MEAN + STD * noise  # the flow of one Gaussian into another is affine
    errors = []
    for steps in (40, 80, 160):
        times = [t for t in time_grid(steps, 1.0) if t >= 0.2]
        at_start = integrate(gaussian_velocity, noise, times, solver)
        reached = (1 - times[-1]) ** 2 * STD**2 + times[-1] ** 2
        there = (1 - times[-1]) * MEAN + reached.sqrt() * noise
        errors.append(float((at_start - there).abs().max()))
    rates = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(rate == pytest.approx(order, abs=0.2) for rate in rates), rates
    drawn = integrate(gaussian_velocity, noise, time_grid(400, 1.0), solver)
    torch.testing.assert_close(drawn, exact, rtol=0, atol=0.03)


@pytest.mark.parametrize("steps", [1, 7, 50])
@pytest.mark.parametrize("shift", [0.1, 1.0, 3.0])
def test_as_many_steps_are_taken_as_are_asked_for(steps: int, shift: float) -> None:
    asked: list[float] = []

    def counted(x: Tensor, time: float) -> Tensor:
        asked.append(time)
        return torch.zeros_like(x)

    times = time_grid(steps, shift)
    assert len(times) == steps + 1 and times[0] == 1 and times[-1] == 0
    integrate(counted, torch.zeros(1, 2), times, "euler")
    assert asked == times[:-1]
    asked.clear()
    integrate(counted, torch.zeros(1, 2), times, "heun")
    assert len(asked) == 2 * steps - 1 and 0 not in asked


def test_the_other_convention_reaches_the_same_image() -> None:
    """t = 1 the image and v = x_0 - noise, as Show-o2 and JanusFlow have it: t -> 1 - t, v -> -v."""
    noise = torch.randn(20, 2, generator=torch.Generator().manual_seed(2)).double()
    ours = integrate(gaussian_velocity, noise, time_grid(20, 1.0), "euler")
    x = noise
    for step in range(20):
        x = x + (1 / 20) * -gaussian_velocity(x, 1 - step / 20)
    torch.testing.assert_close(ours, x, rtol=1e-12, atol=1e-12)


def velocities(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 5, 4, generator=generator, dtype=torch.float64) for _ in range(3)]


@pytest.mark.parametrize("renorm", RENORMS)
def test_scales_of_one_are_no_guidance(renorm: Any) -> None:
    full, image, null = velocities()
    ones = torch.ones(3).double()
    found = guided_velocity(full, image, null, ones, ones, FlowSamplingConfig(renorm=renorm))
    torch.testing.assert_close(found, full, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("renorm", RENORMS)
def test_guidance_of_a_batch_is_that_of_each_image_with_scales_of_its_own(renorm: Any) -> None:
    full, image, null = velocities()
    text, pictures = torch.tensor([2.0, 4.0, 1.0]).double(), torch.tensor([1.0, 1.5, 3.0]).double()
    config = FlowSamplingConfig(renorm=renorm)
    together = guided_velocity(full, image, null, text, pictures, config)
    for row in range(3):
        one = slice(row, row + 1)
        alone = guided_velocity(full[one], image[one], null[one], text[one], pictures[one], config)
        torch.testing.assert_close(together[one], alone, rtol=1e-12, atol=1e-12)


def test_guidance_weighs_words_and_pictures_apart() -> None:
    full, image, null = velocities()
    text, pictures = torch.full((3,), 2.0).double(), torch.full((3,), 3.0).double()
    found = guided_velocity(full, image, null, text, pictures, FlowSamplingConfig())
    torch.testing.assert_close(found, null + 3 * (image - null) + 2 * (full - image))


def test_a_renormalised_velocity_is_as_long_as_the_plain_one_and_points_the_guided_way() -> None:
    full, _, null = velocities()
    scale = torch.full((3,), 5.0).double()
    guided = guided_velocity(full, null, null, scale, scale, FlowSamplingConfig())
    for renorm, over in (("global", (1, 2)), ("channel", (2,)), ("text_channel", (2,))):
        found = guided_velocity(full, null, null, scale, torch.ones(3).double(), FlowSamplingConfig(renorm=renorm))  # pyright: ignore
        longest = torch.linalg.vector_norm(full, dim=over)
        assert (torch.linalg.vector_norm(found, dim=over) <= longest * (1 + 1e-6)).all()
        cosine = torch.nn.functional.cosine_similarity(found.flatten(0, 1), guided.flatten(0, 1), dim=-1)
        torch.testing.assert_close(cosine, torch.ones_like(cosine))
    least = FlowSamplingConfig(renorm="global", renorm_min=1.0)
    torch.testing.assert_close(guided_velocity(full, null, null, scale, torch.ones(3).double(), least), guided)


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"steps": 2.5}, {"shift": 0}, {"solver": "rk4"}, {"renorm": "l1"}, {"guidance_to": 2}],
)
def test_settings_that_make_no_sense_are_refused_with_their_value(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        FlowSamplingConfig(**wrong)


def test_guidance_acts_in_its_interval_alone() -> None:
    config = FlowSamplingConfig(guidance_from=0.4)
    assert [config.guided_at(t) for t in (1.0, 0.41, 0.4, 0.0)] == [True, True, False, False]
