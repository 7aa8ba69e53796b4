"""Classifier-free guidance (arXiv 2207.12598) on logits, inside images alone.

    two-way     u + s (f - u)                               f: the whole context, u: <bos> <null> <sep> <boi> codes
    three-way   u + s_image (i - u) + s_text (f - i)        i: only the pictures of the prompt (Chameleon, Emu3.5)

u and i are contexts of their own. They live in the same batch as rows that exist only while their image is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from unimodal.generation.settings import SCHEDULES, Schedule, check_setting

# Shapes: B rows, V vocabulary.


UNGUIDED = 1.0
"""The scale that gives back the logits under the whole context."""


@dataclass(frozen=True, kw_only=True)
class GuidanceConfig:
    """`scale` weighs the prompt (1: no guidance); with `image_scale` its words alone, and that weighs its pictures.

    `schedule` says how the scales grow from 1 to their full size over an image: at once (`constant`), in proportion
    to the codes drawn (`linear`) or along half a cosine.
    """

    scale: float = UNGUIDED
    image_scale: float | None = None
    schedule: Schedule = "constant"

    def __post_init__(self) -> None:
        check_setting("guidance", self.scale)
        if self.image_scale is not None:
            check_setting("image_guidance", self.image_scale)
        check_setting("guidance_schedule", self.schedule)

    @property
    def active(self) -> bool:
        """Whether there is anything to compare with."""
        return self.scale != 1 or self.image_scale not in (None, 1)


class RowGuidance(NamedTuple):
    """The settings of a batch: (B,) each. `active` rows are guided; `schedule` counts in SCHEDULES."""

    scale: Tensor
    image_scale: Tensor
    schedule: Tensor
    active: Tensor

    @classmethod
    def of(cls, configs: Sequence[GuidanceConfig], device: torch.device | str = "cpu") -> RowGuidance:
        """One row for each config. Where pictures count as text, both scales are the same."""
        image = [config.scale if config.image_scale is None else config.image_scale for config in configs]
        return cls(
            torch.tensor([config.scale for config in configs], dtype=torch.float32, device=device),
            torch.tensor(image, dtype=torch.float32, device=device),
            torch.tensor([SCHEDULES.index(config.schedule) for config in configs], dtype=torch.int64, device=device),
            torch.tensor([config.active for config in configs], dtype=torch.bool, device=device),
        )


def guided_logits(full: Tensor, image: Tensor, null: Tensor, rows: RowGuidance, progress: Tensor) -> Tensor:
    """Logits (B, V) under the three contexts -> guided logits; progress (B,) is the share of the image that is drawn.

    With image = null this is the two-way form. Scales of 1 give back `full` up to rounding; rows that are not guided
    are not to be given here.
    """
    return (
        null
        + scale_now(rows.image_scale, rows, progress)[:, None] * (image - null)
        + scale_now(rows.scale, rows, progress)[:, None] * (full - image)
    )


def scale_now(scale: Tensor, rows: RowGuidance, progress: Tensor) -> Tensor:
    """The scales (B,) that act once this share of the image (B,) is drawn."""
    linear, cosine = progress, (1 - torch.cos(math.pi * progress)) / 2
    weight = torch.where(rows.schedule == 1, linear, torch.where(rows.schedule == 2, cosine, 1.0))
    return 1 + (scale - 1) * weight
