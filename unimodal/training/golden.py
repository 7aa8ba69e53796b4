"""Is a loss normal? A run's losses beside those of the same recipe trained here with several seeds.

    python -m unimodal.training.golden runs/demo/training --recipe demo

Bands lie in docs/results/golden. Each of their steps has, for each loss, the mean over the steps before it, of every
seed. A run is normal where it stays within the seeds' range, widened by its width and by MARGIN of the value.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from unimodal.terminal import say

BANDS_FOLDER = Path(__file__).resolve().parents[2] / "docs" / "results" / "golden"
LOSSES = ("train/loss_text", "train/loss_image", "train/loss_flow")
GOLDEN_FIGURES = (*LOSSES, "monitor/separators")
"""What is compared: losses, and a figure of the documents, where a run has monitors."""
MARGIN = 0.05
"""Of a loss: what other processors, libraries and orders of summing may change."""
EXPECTED_RANGE = {2: 1.128, 3: 1.693, 4: 2.059, 5: 2.326}
"""Of so many draws from a normal distribution, in standard deviations (Tippett, 1925): the range of few seeds is made
as wide as that of five."""
ALLOWED = 0.1
"""Share of the compared numbers that may lie outside: bands of few seeds are narrow now and then."""

LossCurve = Mapping[str, Mapping[int, float]]
"""By loss: step -> mean over the steps up to it, from the one before on."""


@dataclass(frozen=True, kw_only=True)
class Band:
    """One loss at one step: the lowest and the highest of all seeds."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float], stretch: float) -> Band:
        """The range of the values, that many times as wide about its middle, and never below 0."""
        low, high = min(values), max(values)
        more = (stretch - 1) * (high - low) / 2
        return cls(low=max(low - more, 0.0), high=high + more)

    def holds(self, value: float) -> bool:
        """Whether a run's loss is normal."""
        spare = (self.high - self.low) + MARGIN * self.high
        return self.low - spare <= value <= self.high + spare


@dataclass(frozen=True, kw_only=True)
class Golden:
    """The bands of a recipe."""

    recipe: str
    seeds: int
    steps: tuple[int, ...]
    planned_steps: int
    """Of the whole run, on which the learning rate depends."""
    bands: Mapping[str, Mapping[int, Band]]
    device: str = ""

    @classmethod
    def of(
        cls, curves: Sequence[LossCurve], recipe: str, steps: Sequence[int], planned_steps: int, device: str
    ) -> Golden:
        """The range of all curves, as wide as that of five would be; two are needed."""
        stretch = max(EXPECTED_RANGE.values()) / EXPECTED_RANGE.get(len(curves), max(EXPECTED_RANGE.values()))
        bands: dict[str, dict[int, Band]] = {}
        for name in curves[0]:
            found = [curve.get(name, {}) for curve in curves]
            common = [step for step in steps if all(step in of_seed for of_seed in found)]
            if any(each[step] for each in found for step in common):  # a loss of nothing is 0
                bands[name] = {step: Band.of([each[step] for each in found], stretch) for step in common}
        return cls(
            recipe=recipe,
            seeds=len(curves),
            steps=tuple(steps),
            planned_steps=planned_steps,
            bands=bands,
            device=device,
        )

    @classmethod
    def open(cls, recipe: str) -> Golden:
        """Raises ValueError, with the recipes that there are."""
        path = BANDS_FOLDER / f"{recipe}.json"
        if not path.is_file():
            known = ", ".join(sorted(each.stem for each in BANDS_FOLDER.glob("*.json"))) or "none"
            raise ValueError(f"no golden losses of {recipe!r}; there are those of {known}")
        values = json.loads(path.read_text(encoding="utf-8"))
        bands = {
            name: {int(step): Band(low=each[0], high=each[1]) for step, each in of_loss.items()}
            for name, of_loss in values.pop("bands").items()
        }
        return cls(**{**values, "steps": tuple(values["steps"])}, bands=bands)

    def save(self, folder: Path = BANDS_FOLDER) -> Path:
        """As JSON."""
        folder.mkdir(parents=True, exist_ok=True)
        values = asdict(self)
        values["bands"] = {
            name: {step: [round(each.low, 4), round(each.high, 4)] for step, each in of_loss.items()}
            for name, of_loss in self.bands.items()
        }
        path = folder / f"{self.recipe}.json"
        path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        return path


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A run beside its bands."""

    rows: tuple[tuple[str, int, float, Band], ...]
    """(loss, step, the run's, the band)."""

    @property
    def outside(self) -> int:
        """How many numbers lie outside of their band."""
        return sum(not band.holds(value) for _, _, value, band in self.rows)

    @property
    def normal(self) -> bool:
        """Whether few enough do, and there is anything to compare."""
        return bool(self.rows) and self.outside <= ALLOWED * len(self.rows)


def curve(root: Path, steps: Sequence[int]) -> LossCurve:
    """The losses that a run logged in its folder `root`, of all its parts, up to each of the steps.

    Raises ValueError where it logged none.
    """
    found: dict[str, dict[int, float]] = {name: {} for name in GOLDEN_FIGURES}
    for path in sorted(root.glob("logs/version_*/metrics.csv"), key=lambda each: int(each.parent.name.split("_")[1])):
        with path.open() as file:
            for row in csv.DictReader(file):
                for name in GOLDEN_FIGURES:
                    if row.get(name):
                        found[name][int(row["step"]) + 1] = float(row[name])
    if not any(found[name] for name in LOSSES):
        raise ValueError(f"{root}: no logs/version_*/metrics.csv with the losses of training")
    reached = max(max(values) for values in found.values() if values)
    return {name: _means(values, steps, reached) for name, values in found.items() if values}


def _means(values: Mapping[int, float], steps: Sequence[int], reached: int) -> dict[int, float]:
    """Means of what was logged after one step and up to the next; a figure of monitors may miss some."""
    found: dict[int, float] = {}
    for before, step in zip((0, *steps), steps, strict=False):
        between = [value for at, value in values.items() if before < at <= step]
        if between and reached >= step:
            found[step] = fmean(between)
    return found


def compare(found: LossCurve, golden: Golden) -> Comparison:
    """A run's losses beside the bands, at the steps that it reached. A loss that is no number is outside of any band,
    and so is one that the run never logged; figures of monitors are compared where a run has monitors."""
    reached = max((step for values in found.values() for step in values), default=0)
    rows = [
        (name, step, found.get(name, {}).get(step, math.nan), band)
        for name, of_loss in golden.bands.items()
        for step, band in of_loss.items()
        if step <= reached and (name in LOSSES or step in found.get(name, {}))
    ]
    return Comparison(rows=tuple(rows))


def show(verdict: Comparison, golden: Golden) -> None:
    """A line for each number, and what it comes to."""
    for name, step, value, band in verdict.rows:
        of_band = "" if band.holds(value) else "  too high" if not value < band.high else "  too low"
        shown = "no number" if math.isnan(value) else f"{value:.3f}"
        kind = name.removeprefix("train/loss_").removeprefix("monitor/")
        say(f"{kind:<11}step {step:>5}  {shown}  seeds {band.low:.3f} to {band.high:.3f}{of_band}")
    word = "normal" if verdict.normal else "abnormal"
    say(f"{word}: {verdict.outside} of {len(verdict.rows)} figures outside of {golden.seeds} seeds of {golden.recipe}")


def main(arguments: Sequence[str] | None = None) -> int:
    """0 for a normal run, 1 for another, 2 where there is nothing to compare."""
    parser = argparse.ArgumentParser(
        prog="python -m unimodal.training.golden",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="folder of a run, with its logs")
    parser.add_argument("--recipe", default="demo", help="whose losses it is compared with (default demo)")
    given = parser.parse_args(arguments)
    try:
        golden = Golden.open(given.recipe)
        verdict = compare(curve(given.run, golden.steps), golden)
        if not verdict.rows:
            raise ValueError(f"{given.run}: the run is shorter than {golden.steps[0]} steps")
    except (ValueError, OSError) as error:
        print(f"golden: {error}", file=sys.stderr)  # noqa: T201
        return 2
    show(verdict, golden)
    return 0 if verdict.normal else 1


if __name__ == "__main__":
    raise SystemExit(main())
