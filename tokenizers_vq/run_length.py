"""How long a run is, for what changes along it."""

from __future__ import annotations

from typing import Any


def planned_steps(trainer: Any) -> int:
    """Optimizer steps of a run, along which its learning rate decays.

    Raises ValueError where nothing says them: the rate would stand at its floor from the first step on.
    """
    if trainer.max_steps < 0:
        raise ValueError("the learning rate decays over trainer.max_steps, which is not set")
    return max(trainer.max_steps, 1)
