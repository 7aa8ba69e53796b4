"""What it costs to sample pictures with guidance and to take log-probabilities without it: two arms, the same seeds.

python docs/studies/guidance_mismatch.py --model runs/demo/model --out runs/guidance_mismatch
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from unimodal.generation.guidance import GuidanceConfig
from unimodal.terminal import say
from unimodal.training import cli
from unimodal.training.gradients import gradients_of
from unimodal.training.rl.losses.base import PolicyLoss, TokenLosses, TokenRatios
from unimodal.training.rl.module import PolicyModule
from unimodal.training.rl.rollouts import Rollout
from unimodal.training.rl.statistics import Sums
from unimodal.training.rl.updates.base import RolloutUpdate

HERE = Path(__file__).resolve().parent
EVERY = 5
"""Gradients of both kinds are compared in every fifth rollout."""
ARMS = {"with guidance": "GuidedLogProbs", "without guidance": "UnguidedLogProbs"}


@dataclass(frozen=True, kw_only=True)
class Reinforce(PolicyLoss):
    """-A log p: the gradient that every loss has at a ratio of 1, whatever was stored while sampling."""

    @property
    def narrowest(self) -> float:
        """Nothing is clipped."""
        return float("inf")

    def of(self, tokens: TokenRatios) -> TokenLosses:
        """See `PolicyLoss`."""
        none = torch.zeros_like(tokens.log_probs, dtype=torch.bool)
        return TokenLosses(-tokens.advantages * tokens.log_probs, none, none)


def without_guidance(rollout: Rollout) -> Rollout:
    """The same answers, as if they had been sampled without guidance."""
    plain = [
        replace(each, request=replace(each.request, config=replace(each.request.config, guidance=GuidanceConfig())))
        for each in rollout.trajectories
    ]
    return replace(rollout, trajectories=plain)


class UnguidedLogProbs(PolicyModule):
    """Samples with guidance, and takes log-probabilities without it."""

    def roll(self) -> Rollout:
        """See `PolicyModule`."""
        return without_guidance(super().roll())


class GuidedLogProbs(PolicyModule):
    """Both with guidance; now and then the other gradient is computed too, on the same answers."""

    def _step(self, update: RolloutUpdate, numbers: Sequence[int], sums: Sums) -> None:
        if self.round % EVERY == 0:
            right = self._gradient(update, numbers)
            wrong = self._gradient(replace(update, rollout=without_guidance(update.rollout), like=None), numbers)
            sums.put("mismatch_cosine", float(torch.cosine_similarity(right, wrong, dim=0)))
            sums.put("mismatch_length", float(wrong.norm() / right.norm()))
        super()._step(update, numbers, sums)

    def _gradient(self, update: RolloutUpdate, numbers: Sequence[int]) -> Tensor:
        for batch in update.batches(numbers):
            self.manual_backward(update.loss(self.trained, batch.to(self.device), Sums()))
        optimizer = self.optimizers()
        gradient = torch.cat([each.flatten().double() for each in gradients_of(optimizer)])
        for parameter in self.trained.parameters():
            parameter.grad = None
        return gradient


def arguments(arm: str, seed: int, options: argparse.Namespace) -> list[str]:
    """Of `train.py fit`."""
    drawings, held_out = (
        f"[{{class_path: Drawings, init_args: {{rewards: {{{name}: 1.0}}, decode: {{guidance: {options.guidance}}}}}}}]"
        for name in ("drawn", "judged")
    )
    settings = {
        "trainer.max_steps": options.steps,
        "trainer.default_root_dir": root(arm, seed, options.out),
        "trainer.val_check_interval": 10,
        "trainer.check_val_every_n_epoch": "null",
        "trainer.num_sanity_val_steps": 0,
        "trainer.log_every_n_steps": 1,
        "samples.every": 0,
        "model": f"guidance_mismatch.{arm}",
        "model.rewards": (
            f"{{drawn: {{class_path: DrawnColourShape, init_args: {{folder: {options.out / 'judge'}}}}}, "
            f"judged: {{class_path: DrawnColourShape, init_args: {{seed: 7, shape: {{width: 16, layers: 5}}, "
            f"folder: {options.out / 'other_judge'}}}}}}}"
        ),
        "model.rollouts": f"{{prompts: 24, group: 16, seed: {seed}}}",
        "model.loss": "guidance_mismatch.Reinforce",
        "model.optimizer": "AdamWConfig",
        "model.optimizer.learning_rate": options.rate,
        "model.optimizer.weight_decay": 0.0,
        "data": "PromptDataModule",
        "data.bundle": options.model,
        "data.prompts": drawings,
        "data.held_out": held_out,
    }
    return ["fit", f"--seed_everything={seed}", *(f"--{name}={value}" for name, value in settings.items())]


def root(arm: str, seed: int, out: Path) -> Path:
    """Where a run of the study lies."""
    return out / f"{arm}-{seed}"


def column(folder: Path, name: str) -> list[float]:
    """The values of a metric, in order."""
    [*_, newest] = sorted((folder / "logs").glob("version_*/metrics.csv"))
    with newest.open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def table(options: argparse.Namespace) -> str:
    """The arms beside one another: rewards of the first and last five rollouts, the held-out judge, the gradients."""
    lines = ["| log-probabilities | seed | first reward | last reward | held-out judge, last | entropy, last |"]
    lines.append("|---|---|---|---|---|---|")
    for title, arm in ARMS.items():
        for seed in options.seeds:
            folder = root(arm, seed, options.out)
            rewards, held = column(folder, "train/reward"), column(folder, "val/reward")
            entropy = column(folder, "train/entropy_image")
            figures = (fmean(rewards[:5]), fmean(rewards[-5:]), held[-1], fmean(entropy[-5:]))
            lines.append(f"| {title} | {seed} | " + " | ".join(f"{value:.4f}" for value in figures) + " |")
    first = root(ARMS["with guidance"], options.seeds[0], options.out)
    cosines, lengths = column(first, "train/mismatch_cosine"), column(first, "train/mismatch_length")
    lines += ["", "| rollout | cosine of both gradients | length of the wrong one by the right one |", "|---|---|---|"]
    for number, (cosine, length) in enumerate(zip(cosines, lengths, strict=True)):
        lines.append(f"| {number * EVERY} | {cosine:.4f} | {length:.4f} |")
    return "\n".join(lines)


def main(given: Sequence[str] | None = None) -> int:
    """Run what is not there yet, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("runs/demo/model"), metavar="DIR")
    parser.add_argument("--out", type=Path, default=Path("runs/guidance_mismatch"), metavar="DIR")
    parser.add_argument("--steps", type=int, default=30, metavar="N")
    parser.add_argument("--guidance", type=float, default=3.0, metavar="W")
    parser.add_argument("--rate", type=float, default=5e-4, metavar="R", help="learning rate")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], metavar="S")
    options = parser.parse_args(given)
    sys.path.insert(0, str(HERE))
    for seed in options.seeds:
        for arm in ARMS.values():
            if not (root(arm, seed, options.out) / "model").is_dir():
                cli.main(arguments(arm, seed, options))
    found = table(options)
    (options.out / "table.md").write_text(found + "\n")
    say(found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
