"""Failure policy: what happens to a sample that cannot be used. Named, counted, and past a limit it stops."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field

log = logging.getLogger(__name__)

SAMPLES_BEFORE_JUDGING = 50


class TooMuchDamage(ValueError):
    """More samples were unusable than the limit allows."""


@dataclass(kw_only=True)
class FailureLog:
    """Counts good and bad samples; stops when the bad share passes `limit` (0.1 = ten in a hundred).

    The share is checked after every bad sample once 50 were seen, and by `close` at the end.
    """

    limit: float = 0.1
    loud: bool = True
    """Whether every bad sample is logged as it comes."""
    good: int = 0
    bad: list[tuple[str, str]] = field(default_factory=list)
    """(name, reason) of every sample that was skipped."""

    def __post_init__(self) -> None:
        if not 0 <= self.limit <= 1:
            raise ValueError(f"the share of bad samples allowed lies between 0 and 1, got {self.limit}")

    def keep(self) -> None:
        """Count one usable sample."""
        self.good += 1

    def drop(self, name: str, reason: str) -> None:
        """Count, name and log one unusable sample. Raises TooMuchDamage past the limit."""
        self.bad.append((name, reason))
        log.log(logging.WARNING if self.loud else logging.DEBUG, "skipped %s: %s", name, reason)
        if self.good + len(self.bad) >= SAMPLES_BEFORE_JUDGING:
            self._judge()

    def revoke(self, name: str, reason: str) -> None:
        """As `drop`, for a sample that was counted as usable before."""
        self.good = max(self.good - 1, 0)
        self.drop(name, reason)

    def close(self) -> None:
        """Judge the share once more at the end of the data. Raises TooMuchDamage past the limit."""
        self._judge()

    def summary(self) -> dict[str, int]:
        """Reason (without the sample's own name) -> count."""
        return dict(Counter(reason for _, reason in self.bad))

    def _judge(self) -> None:
        seen = self.good + len(self.bad)
        if seen and len(self.bad) > self.limit * seen:
            name, reason = self.bad[-1]
            raise TooMuchDamage(
                f"{len(self.bad)} of {seen} samples cannot be used, over the limit of {self.limit:.0%}; "
                f"the last is {name}: {reason}. Mend the data or raise --max-bad"
            )
