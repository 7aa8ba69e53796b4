"""Learning-rate schedules as plain functions of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Linear warm-up, then constant until `decay_from` of the run, then down to `floor` of the rate.

    Chameleon pretrains with `exponential` from the start (arXiv 2405.09818, section 2.3) and fine-tunes with `cosine`.
    """

    warmup_steps: int = 50
    decay: Literal["linear", "cosine", "exponential", "constant"] = "linear"
    decay_from: float = 0.0
    floor: float = 0.02

    def factor(self, step: int, total: int) -> float:
        """What the learning rate is multiplied with at a step of `total`."""
        warm = min(1.0, (step + 1) / max(self.warmup_steps, 1))
        decay_start = self.decay_from * total
        done = min(max((step - decay_start) / max(total - decay_start, 1), 0.0), 1.0)
        return warm * self._decayed(done)

    def _decayed(self, done: float) -> float:
        match self.decay:
            case "linear":
                return 1 - (1 - self.floor) * done
            case "cosine":
                return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * done)) / 2
            case "exponential":
                return max(self.floor, 1e-9) ** done
            case "constant":
                return 1.0
