"""The right answer to a question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unimodal.evaluation.metrics.vqa import vqa_score
from unimodal.training.rl.rewards.base import Answered, Reward


@dataclass(frozen=True, kw_only=True)
class RightAnswer(Reward):
    """1 where the words equal an answer of the prompt's `answers`, compared as evaluation compares them."""

    facts = ("answers",)

    def score(self, answers: Sequence[Answered]) -> Sequence[float]:
        """See `Reward`."""
        return [vqa_score(each.text, each.prompt.facts["answers"]) for each in answers]
