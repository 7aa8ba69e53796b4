"""Colour and shape of what was drawn, as a judge sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from data_pipelines.sources.easy_vqa import COLOURS, SHAPES
from unimodal.evaluation.judge import Judge, JudgeShape, cached_judge, train_judge
from unimodal.training.rl.rewards.base import Answered, Reward

REWARD_JUDGE = JudgeShape(width=12, layers=6)
"""Of another architecture than the judge that evaluates."""


@dataclass(frozen=True, kw_only=True)
class DrawnColourShape(Reward):
    """How sure a judge of real easy-VQA pictures is of the prompt's `colour` and `shape`: the product of both.

    An answer that is not one picture gets 0. `seed` and `shape` make it another judge than the one that evaluates, so
    that scores are not given by who gave the reward; `folder` keeps it, else each run trains it (half a minute).
    """

    seed: int = 1
    shape: JudgeShape = REWARD_JUDGE
    folder: Path | None = None

    facts = ("colour", "shape")

    @cached_property
    def judge(self) -> Judge:
        """Trained when first asked for."""
        if self.folder is None:
            return train_judge(self.seed, shape=self.shape)
        return cached_judge(self.folder, self.seed, shape=self.shape)

    def prepare(self) -> None:
        """See `Reward`."""
        _ = self.judge

    def score(self, answers: Sequence[Answered]) -> Sequence[float]:
        """See `Reward`."""
        scores = [0.0] * len(answers)
        drawn = [(number, each.pictures[0]) for number, each in enumerate(answers) if len(each.pictures) == 1]
        if not drawn:
            return scores
        colours, shapes = self.judge.probabilities([picture for _, picture in drawn])
        for (number, _), colour, shape in zip(drawn, colours.tolist(), shapes.tolist(), strict=True):
            facts = answers[number].prompt.facts
            scores[number] = colour[COLOURS.index(facts["colour"])] * shape[SHAPES.index(facts["shape"])]
        return scores
