"""Which drafters a model is given, and how many drafts a pass checks."""

from __future__ import annotations

from typing import Literal

from unimodal.generation.drafts.above import CodeAbove
from unimodal.generation.drafts.base import PLAIN, Drafter, Drafting
from unimodal.generation.drafts.jacobi import Jacobi
from unimodal.generation.drafts.multi_token import MultiTokenDrafter
from unimodal.generation.drafts.pace import Pace
from unimodal.generation.drafts.prompt_lookup import PromptLookup
from unimodal.model.model import UnifiedModel

Drafts = int | Literal["auto"]
"""How many drafts a pass checks; `auto` measures it."""
MAX_DRAFTS = 64
WINDOWS = (0, 3, 7, 15)
"""Among which `auto` chooses: passes over 1, 4, 8 and 16 tokens of each row."""


def usual_drafting(model: UnifiedModel, drafts: Drafts) -> Drafting:
    """The drafters of a model: its multi-token heads where it has some, then those that need nothing.

    Raises ValueError for a number of drafts that makes no sense.
    """
    if drafts != "auto" and not (isinstance(drafts, int) and 0 <= drafts <= MAX_DRAFTS):
        raise ValueError(f"drafts are 'auto' or a number from 0 to {MAX_DRAFTS}, got {drafts!r}")
    if drafts == 0:
        return PLAIN
    head = model.multi_token_head
    drafters: tuple[Drafter, ...] = (PromptLookup(), Jacobi(), CodeAbove())
    if head is not None:
        drafters = (MultiTokenDrafter(head), *drafters)
    if drafts == "auto":
        return Drafting(drafters, WINDOWS[-1], Pace(WINDOWS))
    return Drafting(drafters, int(drafts))
