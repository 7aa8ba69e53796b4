"""Guesses for pictures without a model: the code one row higher."""

from __future__ import annotations

import torch

from unimodal.generation.drafts.base import Guesses, Pass


class CodeAbove:
    """The code above each place, the last that is drawn of them; in the first row of a picture the code before."""

    def __call__(self, done: Pass, window: int) -> Guesses:
        """See `Drafter`."""
        batch, steps = done.batch, torch.arange(window, device=done.tokens.device)
        state = batch.state
        columns = state.columns[:, None]
        higher = torch.where(state.drawn[:, None] >= columns, columns + int(batch.machine.is_grid), 1).clamp_min(1)
        source = batch.step_count[:, None] + steps - higher * (1 + steps // higher)
        ids = batch.out.gather(1, source.clamp(0, batch.out.shape[1] - 1))
        known = state.in_image[:, None] & (ids >= batch.space.image_offset) & (source >= 0)
        return Guesses(ids, known)
