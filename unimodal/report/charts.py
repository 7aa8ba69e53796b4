"""Line charts as inline SVG, coloured by the page's own style sheet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

Curve = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 520, 260
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 12, 34
MAX_POINTS = 240
LOG_RATIO = 5.0
"""Curves whose values span more than this factor are drawn on a logarithmic scale."""


@dataclass(frozen=True)
class Scale:
    """Data values -> pixels; logarithmic if asked."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)


def line_chart(title: str, series: Mapping[str, Curve]) -> str:
    """A figure with one line for each name; long series are averaged over neighbouring steps.

    Raises ValueError when no series has a point.
    """
    lines = {name: thin_out(points) for name, points in series.items() if points}
    if not lines:
        raise ValueError(f"chart {title!r} has no points")
    xs = [x for points in lines.values() for x, _ in points]
    ys = [y for points in lines.values() for _, y in points]
    log = min(ys) > 0 and max(ys) / min(ys) > LOG_RATIO
    across = Scale(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    up = Scale(*_padded(min(ys), max(ys), log), HEIGHT - BOTTOM, TOP, log)
    drawn = "".join(_line(index, points, across, up) for index, points in enumerate(lines.values()))
    note = " (logarithmic)" if log else ""
    legend = "".join(
        f'<span><i class="key s{index}"></i>{escape(name)} <b>{series[name][-1][1]:.3g}</b></span>'
        for index, name in enumerate(lines)
    )
    return (
        f'<figure class="chart"><figcaption>{escape(title)}<small>{note}</small></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f'{_axes(across, up)}{drawn}</svg><div class="legend">{legend}</div></figure>'
    )


def thin_out(points: Curve, limit: int = MAX_POINTS) -> Curve:
    """At most `limit` points, each the mean of a run of neighbours; the last one is kept as it is."""
    if len(points) <= limit:
        return points
    size = math.ceil((len(points) - 1) / (limit - 1))
    runs = [points[start : start + size] for start in range(0, len(points) - 1, size)]
    means = [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs]
    return [*means, points[-1]]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values inside [low, high], about `count` of them."""
    if high <= low:
        return [low]
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return [index * step for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten inside [low, high]; powers alone when there are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) <= 4 else (1,)
    return [factor * 10.0**power for power in powers for factor in factors if low <= factor * 10.0**power <= high]


def _padded(low: float, high: float, log: bool) -> tuple[float, float]:
    if log:
        return low / 1.1, high * 1.1
    margin = 0.05 * (high - low) or abs(high) * 0.05 or 1.0
    return low - margin, high + margin


def _line(index: int, points: Curve, across: Scale, up: Scale) -> str:
    path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in points)
    last_x, last_y = points[-1]
    dot = f'<circle class="dot s{index}" cx="{across(last_x):.1f}" cy="{up(last_y):.1f}" r="3"/>'
    few = all(b[0] - a[0] > (across.high - across.low) / 30 for a, b in pairwise(points))
    marks = [f'<circle class="dot s{index}" cx="{across(x):.1f}" cy="{up(y):.1f}" r="2.5"/>' for x, y in points]
    return f'<polyline class="line s{index}" points="{path}"/>{dot}{"".join(marks) if few else ""}'


def _axes(across: Scale, up: Scale) -> str:
    rows = log_ticks(up.low, up.high) if up.log else ticks(up.low, up.high)
    parts = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(y):.1f}" y2="{up(y):.1f}"/>'
        f'<text x="{LEFT - 8}" y="{up(y) + 4:.1f}" text-anchor="end">{y:.4g}</text>'
        for y in rows
    ]
    parts += [
        f'<text x="{across(x):.1f}" y="{HEIGHT - 14}" text-anchor="middle">{x:,.0f}</text>'
        for x in ticks(across.low, across.high)
    ]
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 1}" text-anchor="end" class="axis">step</text>')
    return "".join(parts)
