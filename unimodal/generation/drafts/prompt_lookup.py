"""Prompt look-up: text continues as it did where its last ids stood before, in the prompt or the answer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from unimodal.generation.drafts.base import Guesses, Pass

NGRAM = 2
"""Ids that have to agree."""

# Shapes: P answers, W drafts, L ids of a prompt and its answer at most.


class PromptLookup:
    """The latest place at which the last two ids stood before."""

    def __call__(self, done: Pass, window: int) -> Guesses:
        """See `Drafter`."""
        ids, lengths = done.batch.history()
        found = latest(ids, lengths)
        offsets = found[:, None] + torch.arange(window, device=ids.device)
        known = (found[:, None] > 0) & (offsets < lengths[:, None]) & ~done.batch.state.in_image[:, None]
        return Guesses(ids.gather(1, offsets.clamp(0, ids.shape[1] - 1)), known)


def latest(ids: Tensor, lengths: Tensor) -> Tensor:
    """ids (P, L), of which the first `lengths` (P,) are there -> (P,) where the last NGRAM stood before: the index of
    what followed them, 0 if nowhere.
    """
    offsets = torch.arange(ids.shape[1], device=ids.device)
    agree = offsets < lengths[:, None] - 1
    for back in range(NGRAM):
        last = ids.gather(1, (lengths[:, None] - 1 - back).clamp_min(0))
        agree = agree & (F.pad(ids, (back, 0), value=-1)[:, : ids.shape[1]] == last)
    return torch.where(agree, offsets + 1, 0).amax(-1)
