"""An edited picture: the new colour is there, and the rest is as it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from data_pipelines.images import to_tensor
from unimodal.evaluation.judge import JudgeShape
from unimodal.training.rl.rewards.base import Answered, Reward
from unimodal.training.rl.rewards.drawn import REWARD_JUDGE, DrawnColourShape


@dataclass(frozen=True, kw_only=True)
class EditedPicture(Reward):
    """The judge's word on the new `colour` and the `shape`, times how much of the rest is unchanged.

    `shown` and `known` of the prompt's facts are the picture before and the right one after: where both are equal, a
    pixel is left alone, and its share counts that differs by at most `tolerance` of 255 in every channel.
    """

    seed: int = 1
    shape: JudgeShape = REWARD_JUDGE
    folder: Path | None = None
    tolerance: int = 32

    facts = ("colour", "shape", "shown", "known")

    @cached_property
    def drawn(self) -> DrawnColourShape:
        """Judges colour and shape."""
        return DrawnColourShape(seed=self.seed, shape=self.shape, folder=self.folder)

    def prepare(self) -> None:
        """See `Reward`."""
        self.drawn.prepare()

    def score(self, answers: Sequence[Answered]) -> Sequence[float]:
        """See `Reward`."""
        right = self.drawn.score(answers)
        return [score and score * self._unchanged(each) for score, each in zip(right, answers, strict=True)]

    def _unchanged(self, answer: Answered) -> float:
        shown, known = answer.prompt.facts["shown"], answer.prompt.facts["known"]
        drawn = to_tensor(answer.pictures[0].resize(known.size))
        before, after = to_tensor(shown.resize(known.size)), to_tensor(known)
        left_alone = (before == after).all(0)
        close = (drawn - after).abs().amax(0) <= 2 * self.tolerance / 255
        return float((close & left_alone).sum() / left_alone.sum().clamp_min(1)) if torch.any(left_alone) else 1.0
