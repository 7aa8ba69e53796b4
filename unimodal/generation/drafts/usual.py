"""Which drafters a model is given, and how many drafts a pass checks."""

from __future__ import annotations

from typing import Literal

from unimodal.generation.checks import check_number
from unimodal.generation.drafts.above import CodeAbove
from unimodal.generation.drafts.base import PLAIN, Drafter, Drafting
from unimodal.generation.drafts.jacobi import Jacobi
from unimodal.generation.drafts.multi_token import MultiTokenDrafter
from unimodal.generation.drafts.pace import Pace
from unimodal.generation.drafts.prompt_lookup import PromptLookup
from unimodal.model.model import UnifiedModel

Drafts = int | Literal["auto"]
"""How many drafts a pass checks; `auto` measures it on a CPU and is 0 elsewhere, where steps are recorded."""
MAX_DRAFTS = 64
WINDOWS = (0, 3, 7, 15)
"""Among which `auto` chooses: passes over 1, 4, 8 and 16 tokens of each row."""


def usual_drafting(model: UnifiedModel, drafts: Drafts) -> Drafting:
    """The drafters of a model: its multi-token heads where it has some, then those that need nothing.

    Raises ValueError for a number of drafts that makes no sense.
    """
    if drafts != "auto":
        check_number("the number of drafts, where it is not 'auto',", drafts, 0, MAX_DRAFTS, whole=True)
    if drafts == 0 or (drafts == "auto" and model.device.type != "cpu"):
        return PLAIN
    head = model.multi_token_head
    drafters: tuple[Drafter, ...] = (PromptLookup(), Jacobi(), CodeAbove())
    if head is not None:
        drafters = (MultiTokenDrafter(head), *drafters)
    if drafts == "auto":
        return Drafting(drafters, WINDOWS[-1], Pace(WINDOWS))
    return Drafting(drafters, int(drafts))
