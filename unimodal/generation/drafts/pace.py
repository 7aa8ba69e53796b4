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
RECHECK = 256
"""Passes between two looks at the windows that are not the best."""
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
class Pace:
    """Windows to choose from, 0 among them, and what was measured of each under each circumstance."""

    windows: tuple[int, ...]
    records: dict[tuple[int, bool], dict[int, WindowRecord]] = field(default_factory=dict)
    _passes: int = 0

    def window(self, rows: int, drawing: bool) -> int:
        """For so many answers that move; `drawing` says whether most of them are in an image."""
        known = self._known(rows, drawing)
        self._passes += 1
        for window in self.windows:
            if known[window].passes < TRIES:
                return window
        if self._passes % RECHECK < TRIES * len(self.windows):
            return self.windows[self._passes % RECHECK // TRIES]
        best = max(self.windows, key=lambda window: known[window].rate)
        return best if known[best].rate > DOUBT * known[0].rate else 0

    def note(self, window: int, rows: int, drawing: bool, tokens: int, seconds: float) -> None:
        """A pass with this window gave so many tokens in all."""
        self._known(rows, drawing)[window].add(tokens / max(rows, 1), seconds)

    def _known(self, rows: int, drawing: bool) -> dict[int, WindowRecord]:
        circumstance = (max(rows, 1).bit_length(), drawing)
        return self.records.setdefault(circumstance, {window: WindowRecord() for window in self.windows})
