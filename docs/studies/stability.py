"""What diverges without QK-norm, z-loss, dropout or reordered norms, and how
long before that the monitors say so.

    python docs/studies/stability.py --shards runs/demo/shards --out runs/stability

trains a small mixed-modal decoder for each arm, learning rate and seed on the same batches, writes curves of loss and
monitors to OUT, and fills in docs/studies/stability.md with a table and a picture of them. `--long` does so with two
arms, LONG steps and no clipping of gradients. Killed, it resumes when it is given again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from runner import ROOT, TABLE, fill_in
from torch import Tensor

from data_pipelines.batch import PackedBatch
from data_pipelines.datamodule import TokenDataModule
from data_pipelines.planning import StreamConfig
from data_pipelines.templates import TemplateConfig
from tokenizers_vq.token_space import Modality
from unimodal.model.branches.base import NO_MEDIA
from unimodal.model.config import ModelConfig, TransformerConfig
from unimodal.model.masks import dense_mask
from unimodal.model.model import UnifiedModel
from unimodal.training.gradients import clip, gradients_of, to_means
from unimodal.training.monitors.alarms import History, Limits, warnings
from unimodal.training.monitors.measuring import measure_sample
from unimodal.training.monitors.observed import Observer
from unimodal.training.objectives.base import Terms, total
from unimodal.training.objectives.next_token import next_token_terms
from unimodal.training.optimizers.build import AdamWConfig, build_optimizer

STEPS, LONG, WARM_UP, WATCHED_EVERY = 250, 1000, 30, 10
RATES = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
SEEDS = (0, 1, 2)
ROWS, LENGTH = 4, 288
SHAPE = {"dim": 64, "num_layers": 4, "num_heads": 4, "hidden_dim": 176, "max_length": 512}
PAGE = ROOT / "docs" / "studies" / "stability.md"
LONG_TABLE = "<!-- long -->"
FIXED = 3
"""Batches that no run trains on, and on which the losses of all are compared: those of training hold more images or
fewer."""
ROSE = 0.5
"""Nats by which the loss on them is above an earlier one, for good, where a run has diverged."""


@dataclass(frozen=True, kw_only=True)
class StabilityArm:
    """What is taken from Chameleon's recipe, or added to it."""

    name: str
    trunk: Mapping[str, Any] = field(default_factory=dict)
    z_weight: float = 1e-5
    images: bool = True
    """Whether image codes are learnt; without, only text has a loss."""
    clip: float = 1.0
    """The norm above which gradients are clipped; 0 clips none."""
    dtype: str = "float32"
    """Of weights, gradients and products; or `autocast`: float32 weights whose products are in bfloat16."""


BARE: dict[str, Any] = {"qk_norm": None}
ARMS = (
    StabilityArm(name="QK-norm, z-loss"),
    StabilityArm(name="QK-norm, z-loss, norms reordered", trunk={"norm_placement": "swin"}),
    StabilityArm(name="no QK-norm", trunk=BARE),
    StabilityArm(name="no z-loss", z_weight=0.0),
    StabilityArm(name="neither", trunk=BARE, z_weight=0.0),
    StabilityArm(name="neither, norms reordered", trunk={**BARE, "norm_placement": "swin"}, z_weight=0.0),
    StabilityArm(name="neither, dropout 0.1", trunk={**BARE, "dropout": 0.1}, z_weight=0.0),
    StabilityArm(name="neither, 12 layers", trunk={**BARE, "num_layers": 12}, z_weight=0.0),
    StabilityArm(name="neither, text alone", trunk=BARE, z_weight=0.0, images=False),
    StabilityArm(name="neither, bfloat16 weights", trunk=BARE, z_weight=0.0, dtype="bfloat16"),
)
LONG_RATES = (3e-2, 1e-1)
LONG_ARMS = (
    StabilityArm(name="QK-norm, z-loss, not clipped", clip=0.0),
    StabilityArm(name="neither, not clipped", trunk=BARE, z_weight=0.0, clip=0.0),
)


@dataclass(frozen=True, kw_only=True)
class StabilityRun:
    """One training."""

    arm: StabilityArm
    rate: float
    seed: int
    steps: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.arm.name.replace(', ', '-').replace(' ', '_')}-{self.rate:g}-{self.seed}"


class StabilityPlan(NamedTuple):
    """What is trained, three seeds of each."""

    arms: Sequence[StabilityArm]
    rates: Sequence[float]
    steps: int

    def run(self, arm: StabilityArm, rate: float, seed: int) -> StabilityRun:
        """One of them."""
        return StabilityRun(arm=arm, rate=rate, seed=seed, steps=self.steps)


@cache
def batches(shards: str, steps: int) -> tuple[list[PackedBatch], Any]:
    """The batches that all runs of a process train on, FIXED others behind them, and the token space."""
    data = TokenDataModule(
        shards=[shards],
        stream=StreamConfig(length=LENGTH, rows=ROWS),
        templates=TemplateConfig(image_first=0.4, drawn_image_weight=1.0, max_branches=12),
    )
    data.setup("fit")
    return list(itertools.islice(iter(data.train_dataloader()), steps + FIXED)), data.spec.space


def train(run: StabilityRun, shards: str) -> dict[str, Any]:
    """Losses of every step, figures of every tenth with that on the fixed batches, the first step of each warning."""
    torch.set_num_threads(1)
    torch.manual_seed(run.seed)
    given, space = batches(shards, run.steps)
    arm = run.arm
    model = UnifiedModel(ModelConfig(vocab_size=space.vocab_size, trunk=TransformerConfig(**{**SHAPE, **arm.trunk})))
    model = model.to(torch.bfloat16 if arm.dtype == "bfloat16" else torch.float32)
    optimizer = build_optimizer(model, AdamWConfig(learning_rate=run.rate, weight_decay=0.0))
    rates = [group["lr"] for group in optimizer.param_groups]
    losses: list[float] = []
    figures: list[dict[str, float]] = []
    alarms: dict[str, int] = {}
    history, limits = History(), Limits(after=2 * WARM_UP)
    for step, batch in enumerate(given[: run.steps], 1):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min(1.0, step / WARM_UP)
        loss, norm = _step(model, optimizer, batch, arm)
        losses.append(loss)
        if step % WATCHED_EVERY == 0 or not math.isfinite(loss):
            found = {"step": step, "loss": loss, "grad_norm": norm, **_figures(model, batch, space.image_offset, arm)}
            found["fixed_loss"] = fmean(_loss(model.eval(), each, arm)[0].item() for each in given[run.steps :])
            figures.append(found)
            if step > limits.after:
                for name, _ in warnings(found, history, limits, step):
                    alarms.setdefault(name, step)
                history.follow(found, step)
        if not math.isfinite(loss):
            break
    return {"planned": run.steps, "losses": losses, "figures": figures, "alarms": alarms}


def _autocast(arm: StabilityArm) -> Any:
    return torch.autocast("cpu", torch.bfloat16) if arm.dtype == "autocast" else nullcontext()


def _loss(model: UnifiedModel, batch: PackedBatch, arm: StabilityArm) -> tuple[Tensor, Terms, Tensor]:
    """The mean over tokens without regularising terms, all terms, and the summed weight."""
    weights = batch.loss_weights
    if not arm.images:
        weights = torch.where(batch.modality == int(Modality.IMAGE), 0.0, weights)
    with _autocast(arm), torch.set_grad_enabled(model.training):
        features = model(batch.tokens, batch.positions, dense_mask(batch.documents, batch.branches))
        terms = next_token_terms(features, model.token_head, batch.targets, weights, batch.modality, arm.z_weight)
    weight = weights.sum()
    return (terms["text"].weighted + terms["image"].weighted).detach() / weight, terms, weight


def _step(model: UnifiedModel, optimizer: Any, batch: PackedBatch, arm: StabilityArm) -> tuple[float, float]:
    optimizer.zero_grad()
    loss, terms, weight = _loss(model.train(), batch, arm)
    total(terms).backward()
    norm = to_means(gradients_of(optimizer), weight)
    if arm.clip:
        clip(gradients_of(optimizer), arm.clip, norm)
    optimizer.step()
    return float(loss), float(norm)


def _figures(model: UnifiedModel, batch: PackedBatch, image_offset: int, arm: StabilityArm) -> dict[str, float]:
    observer = Observer(model=model, rows=ROWS, precision=lambda: _autocast(arm))
    return dict(measure_sample(observer, observer.sample(batch), NO_MEDIA, image_offset).sums.over_ranks())


def diverged_at(run: Mapping[str, Any]) -> int | None:
    """The step from which on a run is worse than it was, for good; None for a run that is not."""
    losses, steps = fixed_losses(run), [each["step"] for each in run["figures"]]
    if len(run["losses"]) < run["planned"] or not all(map(math.isfinite, losses)):
        return len(run["losses"])
    if losses[-1] < min(losses) + ROSE:
        return None
    last_good = max(number for number, loss in enumerate(losses) if loss < min(losses) + ROSE)
    return steps[last_good + 1]


def fixed_losses(run: Mapping[str, Any]) -> list[float]:
    """On the fixed batches, every WATCHED_EVERY steps."""
    return [each["fixed_loss"] for each in run["figures"]]


def first_alarm(alarms: Mapping[str, int]) -> tuple[str, int] | None:
    """Of those that watch activations, not the loss itself."""
    early = {name: step for name, step in alarms.items() if name not in ("loss_rise", "grad_norm_rise")}
    return min(early.items(), key=lambda one: one[1]) if early else None


def table(found: Mapping[str, Mapping[str, Any]], plan: StabilityPlan) -> str:
    """A row for each arm: of each learning rate how many seeds diverged, and where; how early the monitors were."""
    head = " | ".join(f"{rate:g}" for rate in plan.rates)
    lines = [
        f"| arm | {head} | loss at the best rate | warned before it diverged |",
        "|---" * (len(plan.rates) + 3) + "|",
    ]
    for arm in plan.arms:
        columns, ends, early, diverged = [], {}, [], 0
        for rate in plan.rates:
            runs = [found[plan.run(arm, rate, seed).name] for seed in SEEDS]
            at = [diverged_at(run) for run in runs]
            finals = [fixed_losses(run)[-1] for run in runs]
            ends[rate] = fmean(finals)
            shown = f"{fmean(finals):.2f}" if all(map(math.isfinite, finals)) else "no number"
            gone = [step for step in at if step is not None]
            columns.append(shown + (f", {len(gone)} of {len(runs)} diverged" if gone else ""))
            diverged += len(gone)
            for run, step in zip(runs, at, strict=True):
                alarm = first_alarm(run["alarms"])
                if step is not None and alarm is not None and alarm[1] < step:
                    early.append(step - alarm[1])
        best = min((value, rate) for rate, value in ends.items() if math.isfinite(value))
        lead = f"{len(early)} of {diverged}" + (f", by {fmean(early):.0f} steps" if early else "") if diverged else "-"
        lines.append(f"| {arm.name} | {' | '.join(columns)} | {best[0]:.3f} at {best[1]:g} | {lead} |")
    return "\n".join(lines)


def draw(found: Mapping[str, Mapping[str, Any]], plan: StabilityPlan, out: Path) -> None:
    """Curves of loss, output norm and largest score, for each arm at each rate, seed 0."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    names = ("fixed_loss", "output_norm", "attention_logit")
    figure, axes = pyplot.subplots(
        len(names), len(plan.arms), figsize=(2.6 * len(plan.arms), 7), sharex=True, sharey="row"
    )
    for column, arm in enumerate(plan.arms):
        for rate in plan.rates:
            figures = found[plan.run(arm, rate, SEEDS[0]).name]["figures"]
            for row, name in enumerate(names):
                values = [(each["step"], each[name]) for each in figures if name in each]
                axes[row, column].plot(*zip(*values, strict=True), label=f"{rate:g}", linewidth=1)
        axes[0, column].set_title(arm.name, fontsize=8)
    for row, name in enumerate(names):
        axes[row, 0].set_ylabel(name.replace("_", " "))
        axes[row, 0].set_yscale("linear" if name == "fixed_loss" else "log")
    axes[0, 0].set_ylim(0, 10)
    axes[0, -1].legend(title="learning rate", fontsize=6)
    figure.tight_layout()
    figure.savefig(out, dpi=70)


def _train_one(run: StabilityRun, shards: str, out: Path) -> str:
    path = out / f"{run.name}.json"
    if not path.is_file():
        started = time.perf_counter()
        found = train(run, shards)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps({**found, "seconds": time.perf_counter() - started}))
        partial.rename(path)
    return run.name


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing, then draw and fill in the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/stability"))
    parser.add_argument("--at-once", type=int, default=2, help="runs side by side, a core each (default 2)")
    parser.add_argument("--long", action="store_true", help=f"two arms, {LONG} steps, gradients not clipped")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    plan = StabilityPlan(LONG_ARMS, LONG_RATES, LONG) if given.long else StabilityPlan(ARMS, RATES, STEPS)
    runs = [plan.run(arm, rate, seed) for seed in SEEDS for rate in plan.rates for arm in plan.arms]
    with ProcessPoolExecutor(given.at_once) as pool:
        jobs = [pool.submit(_train_one, run, given.shards, given.out) for run in runs]
        for number, job in enumerate(jobs, 1):
            print(f"{number}/{len(runs)} {job.result()}", flush=True)  # noqa: T201
    found = {run.name: json.loads((given.out / f"{run.name}.json").read_text()) for run in runs}
    draw(found, plan, PAGE.with_name("stability_long.png" if given.long else "stability.png"))
    fill_in(PAGE, table(found, plan), LONG_TABLE if given.long else TABLE)
    print(table(found, plan))  # noqa: T201
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
