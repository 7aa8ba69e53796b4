"""The study of docs/studies/experts.md: a mixture of experts beside a dense decoder, on the same tokens.

    python docs/studies/experts.py --out runs/experts

trains and scores one model of each kind and seed, and writes the table of the page beside this file. Killed, it resumes
when it is given again; what has ended is not trained again.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from runner import Programs, fill_in, fit, mean_and_each, scored

HERE = Path(__file__).resolve().parent
STEPS = 1100
MOE = {"experts": 8, "top_k": 2, "shared": 1, "hidden_dim": 168, "first_dense": 0}
"""Three experts of 168 hidden units are active, the dense part has 512."""


@dataclass(frozen=True, kw_only=True)
class ExpertArm:
    """One kind of decoder."""

    name: str
    moe: Mapping[str, Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


FASTER = {
    "model.init_args.objectives": [
        {"class_path": "NextToken"},
        {"class_path": "ExpertBalance", "init_args": {"bias_rate": 0.004}},
    ]
}
"""Biases that move four times as fast as by default: a short run is balanced early."""
ARMS = (
    ExpertArm(name="dense"),
    ExpertArm(name="experts, by modality", moe={**MOE, "bias_by": "modality"}, settings=FASTER),
    ExpertArm(name="experts, in sum", moe={**MOE, "bias_by": "all"}, settings=FASTER),
)
LOGGED = (
    ("held-out loss", "val/loss", 4),
    ("held-out text loss, nats", "val/loss_text", 4),
    ("held-out image loss, nats", "val/loss_image", 4),
    ("largest load over mean", "train/max_load", 2),
    ("the same, text", "train/max_load_text", 2),
    ("the same, images", "train/max_load_image", 2),
    ("tokens a second", "train/tokens_per_second", 0),
)
SCORES = (("questions right, 9,673", "vqa", "accuracy"), ("captions exactly right, 888", "caption", "exact_match"))


class ExpertStudy(Programs):
    """All programs of this one."""

    def train(self, shards: Path, seeds: Sequence[int]) -> None:
        """Every model that is not there yet."""
        jobs = [(arm, seed) for seed in seeds for arm in ARMS if not (self.root(arm, seed) / "model").is_dir()]
        self.each(partial(self._train_one, shards), jobs)

    def _train_one(self, shards: Path, arm: ExpertArm, seed: int) -> None:
        settings = {
            "trainer.max_steps": STEPS,
            "trainer.val_check_interval": STEPS // 2,
            "data.init_args.shards": [str(shards)],
            "seed_everything": seed,
            "samples.every": 0,
            **({} if arm.moe is None else {"model.init_args.trunk.moe": dict(arm.moe)}),
            **arm.settings,
        }
        given = [
            f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in settings.items()
        ]
        self.run(*fit("configs/run/demo.yaml", self.root(arm, seed)), *given)

    def score(self, seeds: Sequence[int]) -> None:
        """Every result that is not there yet."""
        self.side_by_side(
            (*scored(task), "--model", str(self.root(arm, seed) / "model"), "--out", str(result))
            for arm in ARMS
            for seed in seeds
            for _, task, _ in SCORES
            if not (result := self.root(arm, seed) / "results" / f"{task}.json").is_file()
        )

    def root(self, arm: ExpertArm, seed: int) -> Path:
        """Where a model of an arm lies."""
        return self.out / f"{arm.name.replace(', ', '-').replace(' ', '-')}-{seed}"


def last_logged(root: Path, column: str) -> float:
    """The mean of a column over the last tenth of its rows; nan where it was never logged."""
    found = list[float]()
    for path in sorted(root.glob("logs/version_*/metrics.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            found += [float(row[column]) for row in csv.DictReader(file) if row.get(column)]
    kept = found[-max(1, len(found) // 10) :]
    return sum(kept) / len(kept) if kept else float("nan")


def table(study: ExpertStudy, seeds: Sequence[int]) -> str:
    """What was logged and scored, as Markdown: an arm a column, the mean over the seeds that are there, and each."""
    lines = ["| | " + " | ".join(arm.name for arm in ARMS) + " |", "|---" * (len(ARMS) + 1) + "|"]
    for title, column, digits in LOGGED:
        found = [[last_logged(study.root(arm, seed), column) for seed in seeds] for arm in ARMS]
        lines.append(_row(title, found, digits))
    for title, task, metric in SCORES:
        found = [[_score(study.root(arm, seed), task, metric) for seed in seeds] for arm in ARMS]
        lines.append(_row(title, found, 4))
    return "\n".join(lines)


def _score(root: Path, task: str, metric: str) -> float:
    path = root / "results" / f"{task}.json"
    return json.loads(path.read_text())["metrics"][metric] if path.is_file() else float("nan")


def _row(title: str, found: Sequence[Sequence[float]], digits: int) -> str:
    known = [[value for value in values if not math.isnan(value)] for values in found]
    cells = [mean_and_each(values, digits) if values else "-" for values in known]
    return f"| {title} | " + " | ".join(cells) + " |"


def main() -> int:
    """Train, score, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/experts"))
    parser.add_argument("--shards", type=Path, default=Path("runs/demo/shards"), help="those of `unimodal demo`")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--at-once", type=int, default=2)
    options = parser.parse_args()
    study = ExpertStudy(out=options.out.resolve(), at_once=options.at_once)
    study.out.mkdir(parents=True, exist_ok=True)
    study.train(options.shards.resolve(), options.seeds)
    study.score(options.seeds)
    fill_in(HERE / "experts.md", table(study, options.seeds))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
