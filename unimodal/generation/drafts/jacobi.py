"""Jacobi iteration: what a pass sampled behind a wrong draft is the next guess (Santilli et al., arXiv 2305.10427)."""

from __future__ import annotations

import torch

from unimodal.generation.drafts.base import Guesses, Pass


class Jacobi:
    """Its noise is that of the later tokens already, so a guess stays true where its distribution hardly changes."""

    def __call__(self, done: Pass, window: int) -> Guesses:
        """See `Drafter`."""
        width = done.tokens.shape[1]
        offsets = done.taken[:, None] + torch.arange(window, device=done.tokens.device)
        ids = done.tokens.gather(1, offsets.clamp_max(width - 1))
        return Guesses(ids, (offsets < width) & (done.taken[:, None] > 0))
