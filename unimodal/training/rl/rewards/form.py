"""The form of an answer: JSON that fits a schema, a regular expression, a length, a number of pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from unimodal.training.rl.rewards.base import Answered, Reward


@dataclass(frozen=True, kw_only=True)
class JsonForm(Reward):
    """1 where the words are JSON that fits `schema` (JSON Schema 2020-12)."""

    schema: dict[str, Any]

    @cached_property
    def validator(self) -> Any:
        """Of the schema. Raises ValueError for one that is none."""
        from jsonschema import Draft202012Validator, SchemaError

        try:
            Draft202012Validator.check_schema(self.schema)
        except SchemaError as error:
            raise ValueError(f"not a JSON schema: {error.message}") from error
        return Draft202012Validator(self.schema)

    def prepare(self) -> None:
        """See `Reward`."""
        _ = self.validator

    def score(self, answers: Sequence[Answered]) -> Sequence[float]:
        """See `Reward`."""
        return [float(self._fits(each.text)) for each in answers]

    def _fits(self, text: str) -> bool:
        try:
            value = json.loads(text)
        except ValueError:
            return False
        return self.validator.is_valid(value)


@dataclass(frozen=True, kw_only=True)
class PatternForm(Reward):
    """1 where all of the words match a regular expression."""

    pattern: str

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"not a regular expression: {self.pattern!r} ({error})") from error

    def score(self, answers: Sequence[Answered]) -> Sequence[float]:
        """See `Reward`."""
        return [float(re.fullmatch(self.pattern, each.text) is not None) for each in answers]


@dataclass(frozen=True, kw_only=True)
class LengthForm(Reward):
    """1 for `min_words` to `max_words` words, falling to 0 at twice the distance outside of them."""

    min_words: int = 1
    max_words: int = 30

    def __post_init__(self) -> None:
        if not 0 <= self.min_words <= self.max_words or self.max_words < 1:
            raise ValueError(
                f"a length of words goes from min_words to max_words, got {self.min_words} to {self.max_words}"
            )

    def score(self, answers: Sequence[Answered]) -> Sequence[float]:
        """See `Reward`."""
        return [self._of(len(each.text.split())) for each in answers]

    def _of(self, words: int) -> float:
        outside = max(self.min_words - words, words - self.max_words, 0)
        return max(1 - outside / max(self.max_words - self.min_words, 1), 0.0)


@dataclass(frozen=True, kw_only=True)
class PictureCount(Reward):
    """1 where an answer has as many pictures as the prompt's `pictures`, less a share for each too many or few."""

    facts = ("pictures",)

    def score(self, answers: Sequence[Answered]) -> Sequence[float]:
        """See `Reward`."""
        return [self._of(len(each.pictures), int(each.prompt.facts["pictures"])) for each in answers]

    def _of(self, found: int, wanted: int) -> float:
        return max(1 - abs(found - wanted) / max(wanted, 1), 0.0)
