"""A soft punishment of answers that come close to their token budget (DAPO)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class OverlongConfig:
    """The reward falls over the last `cache` tokens of an answer's budget, by `factor` at its end (arXiv 2503.14476).

    It is for text: an image has the length that its layout says.
    """

    cache: int = 4096
    factor: float = 1.0

    def __post_init__(self) -> None:
        if self.cache < 1 or self.factor < 0:
            raise ValueError(f"overlong.cache is at least 1 and its factor not below 0, got {self}")

    def penalty(self, length: int, max_length: int) -> float:
        """What is added to the reward of an answer of `length` tokens of at most `max_length`: from 0 to -factor."""
        return min(-(length - (max_length - self.cache)) / self.cache * self.factor, 0.0)
