"""From noise to latents: the grid of times, the solvers, and guidance on velocities.

t = 1 is noise and the velocity is noise - x_0 (model/flow.py), so a step goes from t to a smaller time s by (s - t) v.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from unimodal.generation.settings import Renorm, Solver, check_setting
from unimodal.model.branches.flow import shift_times

# Shapes: B images, N latents of each, C channels.

Velocity = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True, kw_only=True)
class FlowSamplingConfig:
    """How latents are drawn; the scales of guidance are those of GuidanceConfig.

    `steps` of a solver over a grid of times moved towards noise by `shift`; Heun's steps ask the model twice, but for
    the last one. Guidance acts at times above `guidance_from` and up to `guidance_to`. `renorm` keeps guided velocities
    as long as plain ones, down to `renorm_min` of their own length (BAGEL, arXiv 2505.14683): over a whole image
    (`global`), latent by latent (`channel`), or latent by latent in guidance by words alone (`text_channel`). `noise`
    above 0 is added at every step but the last, which gives steps a probability (stochastic_flow.py).
    """

    steps: int = 24
    solver: Solver = "euler"
    shift: float = 3.0
    guidance_from: float = 0.0
    guidance_to: float = 1.0
    renorm: Renorm = "none"
    renorm_min: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check_setting(name, value)
        if self.noise and (self.solver != "euler" or self.steps < 2):
            raise ValueError("noise is added by the solver euler, at every step but the last: take 2 steps at least")

    def guided_at(self, time: float) -> bool:
        """Whether guidance acts at this time."""
        return self.guidance_from < time <= self.guidance_to


def time_grid(steps: int, shift: float) -> list[float]:
    """steps + 1 times from 1 to 0."""
    return shift_times(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift).clamp(max=1).tolist()


def integrate(velocity: Velocity, noise: Tensor, times: list[float], solver: Solver) -> Tensor:
    """Follow dx/dt = velocity(x, t) from the first time to the last; as many steps as there are pairs of times.

    Euler, or Heun, of second order. Heun's last step ends where t = 0 and is one of Euler there (EDM, arXiv 2206.00364,
    algorithm 1), because no model is trained at the end itself.
    """
    x = noise
    for time, following in pairwise(times):
        step = following - time
        first = velocity(x, time)
        if solver == "heun" and following > 0:
            second = velocity(x + step * first, following)
            first = (first + second) / 2
        x = x + step * first
    return x


def guided_velocity(
    full: Tensor, image: Tensor, null: Tensor, scale: Tensor, image_scale: Tensor, config: FlowSamplingConfig
) -> Tensor:
    """Velocities (B, N, C) under the whole context, its pictures alone and none -> guided velocity (B, N, C).

    null + image_scale (image - null) + scale (full - image), scales (B,), then renormalised. Scales of 1 give `full`.
    """
    scale, image_scale = scale[:, None, None], image_scale[:, None, None]
    by_text = image + scale * (full - image)
    by_image = (image_scale - 1) * (image - null)
    if config.renorm == "none":
        return by_text + by_image
    if config.renorm == "text_channel":
        return _shortened(by_text, full, (-1,), config.renorm_min) + by_image
    over = (-2, -1) if config.renorm == "global" else (-1,)
    return _shortened(by_text + by_image, full, over, config.renorm_min)


def _shortened(guided: Tensor, plain: Tensor, over: tuple[int, ...], minimum: float) -> Tensor:
    """Guided velocities, never longer than plain ones."""
    lengths = [torch.linalg.vector_norm(velocity, dim=over, keepdim=True) for velocity in (plain, guided)]
    return guided * (lengths[0] / (lengths[1] + 1e-8)).clamp(minimum, 1.0)
