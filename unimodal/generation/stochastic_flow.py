"""Latents drawn step by step with noise: steps whose probability is known, which a deterministic solver has not.

The stochastic equation has the same distribution of x_t at every time as the flow's path (Flow-GRPO, arXiv 2505.05470,
section 4.2). With t = 1 noise, a step from t to s = t - d is Gaussian:

    g    = level sqrt(t / (1 - t))                       1 - t is that of the second time where t = 1
    mean = x - d (x g^2 / (2 t) + v (1 + g^2 (1 - t) / (2 t)))       deviation = g sqrt(d)

The last step, to t = 0, follows the flow without noise: what it added would stay in the picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unimodal.generation.flow_sampling import Velocity

# Shapes: B images, N latents of each, C channels.


class StepTime(NamedTuple):
    """A step of the solver, or tensors of steps: its time, the next one, and g of the module's docstring."""

    time: Any
    following: Any
    spread: Any

    @property
    def deviation(self) -> Any:
        """Of the Gaussian, for each number of the latents."""
        return self.spread * (self.time - self.following) ** 0.5


class NoiseWindow(NamedTuple):
    """What pictures of a group share: the seed of the noise that they start from, and which of their steps have noise.

    Pictures then differ by the noise of `count` steps from step `first` on, and by nothing else.
    """

    seed: int
    first: int
    count: int

    def holds(self, step: int) -> bool:
        """Whether a step has noise."""
        return self.first <= step < self.first + self.count


@dataclass(frozen=True, kw_only=True, eq=False)
class FlowStep:
    """One noisy step of one image: the latents (N, C) before and after it, and its log-probability when drawn."""

    at: StepTime
    before: Tensor
    after: Tensor
    log_prob: float


def noisy_steps(times: Sequence[float], level: float) -> list[StepTime]:
    """Those of a grid of times (descending, from 1 to 0) but the last, which has no noise."""
    steps = []
    for time, following in list(pairwise(times))[:-1]:
        rest = 1 - (times[1] if time == 1 else time)
        steps.append(StepTime(time, following, level * math.sqrt(time / rest)))
    return steps


def step_mean(x: Tensor, velocity: Tensor, at: StepTime) -> Tensor:
    """x and velocity (..., N, C) -> the mean of the latents after a step."""
    passed, ratio = at.time - at.following, at.spread**2 / (2 * at.time)
    return x - passed * (x * ratio + velocity * (1 + ratio * (1 - at.time)))


def log_prob(after: Tensor, mean: Tensor, deviation: Tensor | float) -> Tensor:
    """(..., N, C) -> (...): the Gaussian log-probability, a mean over the numbers of an image as in Flow-GRPO."""
    deviation = torch.as_tensor(deviation, dtype=mean.dtype, device=mean.device)
    scaled = (after - mean) / deviation
    return -(scaled.square() / 2 + deviation.log() + math.log(2 * math.pi) / 2).mean((-2, -1))


def follow(
    velocity: Velocity,
    noise: Tensor,
    times: Sequence[float],
    level: float,
    draw: Callable[[], Tensor],
    windows: Sequence[NoiseWindow | None] | None = None,
) -> tuple[Tensor, list[list[FlowStep]]]:
    """noise (B, N, C) -> latents (B, N, C), and of each image its noisy steps. `draw` gives normal (B, N, C).

    Outside its window an image follows the flow without noise; without a window all its steps but the last have some.
    """
    x, paths = noise, [list[FlowStep]() for _ in noise]
    windows = windows or [None] * len(noise)
    for number, at in enumerate(noisy_steps(times, level)):
        found = velocity(x, at.time)
        mean, plain, drawn = step_mean(x, found, at), x + (at.following - at.time) * found, draw()
        chosen = torch.tensor([window is None or window.holds(number) for window in windows], device=x.device)
        after = torch.where(chosen[:, None, None], mean + at.deviation * drawn, plain)
        values = log_prob(after, mean, at.deviation).tolist()
        for place in chosen.nonzero().flatten().tolist():
            paths[place].append(FlowStep(at=at, before=x[place], after=after[place], log_prob=values[place]))
        x = after
    return x + (times[-1] - times[-2]) * velocity(x, times[-2]), paths
