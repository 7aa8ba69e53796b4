"""What a reward is given and what it gives back, and what happens where it cannot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from data_pipelines.failures import FailureLog
from unimodal.generation.prompts import Part
from unimodal.generation.requests import Finish
from unimodal.training.rl.prompts.base import RLPrompt


@dataclass(frozen=True, kw_only=True)
class Answered:
    """An answer to a prompt: strings and pictures in order, and why it ended."""

    prompt: RLPrompt
    parts: Sequence[Part]
    finish: Finish = "end"

    @property
    def text(self) -> str:
        """All of its words, without spaces around them."""
        return "".join(part for part in self.parts if isinstance(part, str)).strip()

    @property
    def pictures(self) -> list[Image.Image]:
        """Its pictures, in order."""
        return [part for part in self.parts if isinstance(part, Image.Image)]


class Reward:
    """Scores answers. A subclass is one file, registered by being named in a config.

    `facts` are the names of what it reads of a prompt's facts; a prompt that lacks one is refused before the run.
    """

    facts: tuple[str, ...] = ()

    def prepare(self) -> None:
        """Open or train what it scores with; called once before the run, where an error ends it in one line."""

    def score(self, answers: Sequence[Answered]) -> Sequence[float]:
        """A number in [0, 1] for each answer. What raises, or is no such number, counts as a reward that is lost."""
        raise NotImplementedError


def scored(name: str, reward: Reward, answers: Sequence[Answered], failures: FailureLog) -> list[float]:
    """The scores of a reward; NaN for answers whose score could not be had, each named and counted in `failures`.

    Where scoring all of them raises, each is tried alone, so that one bad answer takes no other's score away. Raises
    TooMuchDamage where too many are lost.
    """
    if not answers:
        return []
    try:
        found: list[Any] = list(reward.score(answers))
        if len(found) != len(answers):
            raise ValueError(f"{len(found)} scores for {len(answers)} answers")
    except Exception:  # a reward is other people's code
        found = _one_by_one(reward, answers)
    scores = []
    for answer, value in zip(answers, found, strict=True):
        reason = _fault(value)
        if reason:
            failures.drop(f"reward {name} of {answer.prompt.name}", reason)
            scores.append(math.nan)
        else:
            failures.keep()
            scores.append(float(value))
    return scores


SAME_ERRORS = 3
"""Where so many answers in a row raise the same, what is wrong is the reward, and the others are not tried."""


def _one_by_one(reward: Reward, answers: Sequence[Answered]) -> list[Any]:
    found: list[Any] = []
    for answer in answers:
        last = found[-SAME_ERRORS:]
        errors = {repr(each) for each in last if isinstance(each, Exception)}
        if len(errors) == 1 and len(last) == SAME_ERRORS and all(isinstance(each, Exception) for each in last):
            return [*found, *[last[0]] * (len(answers) - len(found))]
        found.append(_alone(reward, answer))
    return found


def _alone(reward: Reward, answer: Answered) -> Any:
    try:
        [value] = reward.score([answer])
    except Exception as error:
        return error
    return value


def _fault(value: Any) -> str:
    """Why a value is no score; empty where it is one."""
    if isinstance(value, Exception):
        return f"{type(value).__name__}: {' '.join(str(value).split())[:200]}"
    try:
        number = float(value)
    except (TypeError, ValueError):
        return f"not a number: {value!r:.60}"
    if not math.isfinite(number):
        return f"not finite: {number}"
    return "" if 0 <= number <= 1 else f"outside of [0, 1]: {number:g}"
