"""Golden losses of the recipes: trained with several seeds, and recipes that are broken on purpose beside them.

    python docs/studies/golden.py --recipe demo --shards runs/demo/shards --out runs/golden

writes docs/results/golden/RECIPE.json, which `python -m unimodal.training.golden` compares a run with. A run has the
schedule of the whole recipe and ends at the last golden step. `--broken` then trains what must be called abnormal. What
has ended is not trained again.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from runner import ROOT, Programs

from data_pipelines import templates
from data_pipelines.batch import PackedBatch
from data_pipelines.outline import Run
from unimodal.terminal import say
from unimodal.training.cli import run
from unimodal.training.golden import Golden, compare, curve, show
from unimodal.training.module import TransformerModule

STEPS = (20, 50, 100, 150, 200)
BROKEN_AT = 200
"""Steps within which a broken recipe has to be found."""
PLANNED = {"demo": 2200, "easy_vqa": 3600, "easy_vqa_flow": 2100, "easy_vqa_edits": 2400, "easy_vqa_vit": 1800}


class StopAt(L.Callback):
    """Ends a run early, with the learning rates that the whole one has."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        del pl_module, outputs, batch, batch_idx
        trainer.should_stop |= trainer.global_step >= self.step


def unshifted_targets() -> None:
    """Every token is asked for itself."""
    terms = TransformerModule.terms

    def broken(self: TransformerModule, batch: PackedBatch, number: int) -> Any:
        return terms(self, dataclasses.replace(batch, targets=batch.tokens), number)

    TransformerModule.terms = broken


def no_separator() -> None:
    """Nothing stands between a question and its answer, or between a caption and its picture."""
    single = templates.single
    templates.single = lambda token, weight: (
        Run(single(token, weight).ids[:0], weight) if token == 5 else single(token, weight)
    )


BREAK: dict[str, Callable[[], None]] = {"unshifted targets": unshifted_targets, "no separator": no_separator}
SETTINGS: dict[str, tuple[str, ...]] = {
    "learning rate x 10": ("--model.init_args.optimizer.init_args.learning_rate", "0.12"),
    "learning rate / 20": ("--model.init_args.optimizer.init_args.learning_rate", "0.0006"),
}
"""What breaks a recipe by its config alone."""


class GoldenRuns(Programs):
    """All runs of one recipe."""

    def train(self, recipe: str, shards: Path, name: str, seed: int, last: int, *settings: str) -> Path:
        """The folder of a run, which is trained where it has not ended yet."""
        root = self.out / recipe / name.replace(" ", "_").replace("/", "by")
        if not (root / "ended").is_file():
            callback = ("--trainer.callbacks+=golden.StopAt", f"--trainer.callbacks.step={last}")
            config = ("--config", str(ROOT / "configs" / "run" / f"{recipe}.yaml"), "--seed_everything", str(seed))
            length = ("--trainer.max_steps", str(PLANNED[recipe]), "--trainer.limit_val_batches", "0")
            folders = ("--trainer.default_root_dir", str(root), "--data.init_args.shards", f"[{shards}]")
            quiet = ("--samples.every", "0", "--trainer.devices", "1", "--checkpoint.every_n_train_steps", "0")
            command = (__file__, "--run", name, "fit", *config, *length, *folders, *quiet, *callback, *settings)
            self.run(*command)
            (root / "ended").touch()
        return root


def make(given: argparse.Namespace) -> int:
    """Bands of all seeds, then the broken recipes beside them."""
    given.out.mkdir(parents=True, exist_ok=True)
    runs = GoldenRuns(out=given.out, at_once=1)
    seeds = [runs.train(given.recipe, given.shards, f"seed {seed}", seed, STEPS[-1]) for seed in range(given.seeds)]
    device = f"2 threads, {torch.backends.cpu.get_cpu_capability()}" if not torch.cuda.is_available() else "GPU"
    curves = [curve(root, STEPS) for root in seeds]
    golden = Golden.of(curves, given.recipe, STEPS, PLANNED[given.recipe], device)
    say(f"wrote {golden.save()}")
    found = []
    for name in (*BREAK, *SETTINGS) if given.broken else ():
        root = runs.train(given.recipe, given.shards, name, 0, BROKEN_AT, *SETTINGS.get(name, ()))
        verdict = compare(curve(root, STEPS), golden)
        say(name)
        show(verdict, golden)
        found.append(not verdict.normal)
    if given.broken:
        root = runs.train(given.recipe, given.shards, "another seed", 100, BROKEN_AT)
        verdict = compare(curve(root, STEPS), golden)
        say("a seed that no band has")
        show(verdict, golden)
        found.append(verdict.normal)
    return 0 if all(found) else 1


def main() -> int:
    """Either one run, broken or not, or all of them."""
    if sys.argv[1:2] == ["--run"]:
        BREAK.get(sys.argv[2], lambda: None)()
        run(sys.argv[3:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=tuple(PLANNED), default="demo")
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/golden"))
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="bands are of N seeds (default 5)")
    parser.add_argument("--broken", action="store_true", help="train broken recipes too, which must be abnormal")
    return make(parser.parse_args())


if __name__ == "__main__":
    raise SystemExit(main())
