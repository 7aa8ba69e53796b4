"""How many drafts a pass checks: the window under which answers grow fastest, by measurement.

A pass over W + 1 tokens takes longer than one over one token, by how much depends on the machine and on the rows; what
it gives depends on the model and the answer. So windows are tried, the best is kept, and none is one of them. Answers
do not depend on it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median

TRIES = 4
"""Passes of a window before it is judged, and before another is tried."""
RECHECK, RARELY = 256, 16384
"""Passes before the windows that are not the best are tried again: at first, and at most; each time in vain doubles."""
MEMORY = 8
"""Passes of a window whose median time counts: one of them may have compiled something."""
NEWEST = 0.2
"""Weight of the newest pass in what a window gives."""
DOUBT = 1.03
"""A window has to be so much faster than plain decoding to be taken instead of it."""


@dataclass
class WindowRecord:
    """What is known of one window: tokens and seconds of a pass."""

    passes: int = 0
    tokens: float = 0.0
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=MEMORY))

    def add(self, tokens: float, seconds: float) -> None:
        """A pass."""
        self.tokens += (NEWEST if self.passes else 1.0) * (tokens - self.tokens)
        self.seconds.append(seconds)
        self.passes += 1

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / max(median(self.seconds), 1e-9)


@dataclass
class Records:
    """What was measured under one circumstance, and when to measure again."""

    windows: dict[int, WindowRecord]
    best: int = 0
    since: int = 0
    """Passes since all windows were tried."""
    interval: int = RECHECK

    def next_window(self) -> int:
        """The fastest, or one that is to be tried."""
        for window, record in self.windows.items():
            if record.passes < TRIES:
                return window
        self.since += 1
        trial = self.since - self.interval
        if trial < 0:
            return self._fastest()
        if trial < TRIES * len(self.windows):
            return list(self.windows)[trial // TRIES]
        before, self.since = self.best, 0
        self.interval = RECHECK if self._fastest() != before else min(2 * self.interval, RARELY)
        return self.best

    def _fastest(self) -> int:
        best = max(self.windows, key=lambda window: self.windows[window].rate)
        self.best = best if self.windows[best].rate > DOUBT * self.windows[0].rate else 0
        return self.best


@dataclass
class Pace:
    """Windows to choose from, 0 among them, and what was measured of each under each circumstance."""

    windows: tuple[int, ...]
    records: dict[tuple[int, bool], Records] = field(default_factory=dict)

    def window(self, rows: int, drawing: bool) -> int:
        """For so many answers that move; `drawing` says whether most of them are in an image."""
        return self._known(rows, drawing).next_window()

    def note(self, window: int, rows: int, drawing: bool, tokens: int, seconds: float) -> None:
        """A pass with this window gave so many tokens in all."""
        self._known(rows, drawing).windows[window].add(tokens / max(rows, 1), seconds)

    def _known(self, rows: int, drawing: bool) -> Records:
        """One answer, 2 to 7, 8 to 31, 32 to 127 and so on are circumstances of their own."""
        circumstance = (max(rows, 1).bit_length() // 2, drawing)
        fresh = {window: WindowRecord() for window in self.windows}
        return self.records.setdefault(circumstance, Records(fresh))
