"""A caption held against those that people wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from unimodal.evaluation.metrics.captions import exact_match, rouge_l
from unimodal.training.rl.rewards.base import Answered, Reward


@dataclass(frozen=True, kw_only=True)
class CaptionMatch(Reward):
    """How close the words come to the prompt's `captions`: `exact` words, or `rouge` (ROUGE-L), which grades them.

    CIDEr weighs words by how rare they are in a test set, which one answer has none of.
    """

    metric: Literal["exact", "rouge"] = "exact"

    facts = ("captions",)

    def score(self, answers: Sequence[Answered]) -> Sequence[float]:
        """See `Reward`."""
        metric = exact_match if self.metric == "exact" else rouge_l
        return [metric([each.text], [each.prompt.facts["captions"]]) if each.text else 0.0 for each in answers]
