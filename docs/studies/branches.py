"""The study of docs/studies/branches.md: codes, latents, and latents with a ViT, on the same trunk, documents and time.

    python docs/studies/branches.py --out runs/branches

prepares what all share, trains and scores one model of each kind and seed, and writes the page beside this file.
Trainings go `--at-once` side by side, each with its share of the cores. Killed, it goes on when it is given again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from runner import ROOT, Programs, fill_in, fit, mean_and_each, scored

from unimodal.demo.tour import DOCUMENTS

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One kind of model; the steps of its config are chosen so that all arms train for about the same time."""

    name: str
    config: str

    @property
    def steps(self) -> int:
        """Of the optimizer."""
        return yaml.safe_load((ROOT / self.config).read_text())["trainer"]["max_steps"]


ARMS = (
    Arm(name="codes", config="configs/run/easy_vqa_edits.yaml"),
    Arm(name="latents", config="configs/run/easy_vqa_flow.yaml"),
    Arm(name="latents, ViT", config="configs/run/easy_vqa_vit.yaml"),
)
TASKS: dict[str, tuple[str, ...]] = {
    "vqa": (),
    "caption": (),
    "t2i": ("--seeds-per-prompt", "16", "--guidance", "3"),
    "edit": ("--limit", "384", "--guidance", "2"),
    "reconstruction": (),
}
ROWS = (
    ("questions right, 9,673", "vqa", "accuracy", 4),
    ("captions exactly right, 888", "caption", "exact_match", 4),
    ("drawings, colour and shape right, 384", "t2i", "accuracy", 4),
    ("drawings, colour right", "t2i", "colour", 4),
    ("edits, colour and shape right, 384", "edit", "accuracy", 4),
    ("edits, PSNR against the known answer, dB", "edit", "psnr", 1),
    ("the same, of what it draws with at best, dB", "edit", "ceiling_psnr", 1),
    ("edits, PSNR beside the shape, dB", "edit", "psnr_rest", 1),
    ("reconstruction by what it draws with, dB", "reconstruction", "drawn_psnr", 1),
)
SHOWN = 12


class Study(Programs):
    """All programs of this one."""

    def prepare(self) -> None:
        """Both tokenizers and the shards that all arms train on."""
        codes, latents = self.out / "tokenizer" / "image_tokenizer", self.out / "autoencoder" / "image_autoencoder"
        fits = [(codes, "configs/tokenizer/demo.yaml"), (latents, "configs/tokenizer/easy_vqa_kl.yaml")]
        self.side_by_side(
            (*fit(config, folder.parent), "--model.init_args.out", str(folder))
            for folder, config in fits
            if not folder.is_dir()
        )
        if not (self.out / "shards" / "manifest.json").is_file():
            source = ["--source", "easy_vqa", "--patch", "8"]
            for name, count in DOCUMENTS["flow"].items():
                source += ["--option", f"{name}={count}"]
            made = ("--image-tokenizer", str(codes), "--autoencoder", str(latents), "--out", str(self.out / "shards"))
            self.unimodal("tokenize", *source, *made, "--copies", "4", "--augment", "flip,place")

    def train(self, seeds: Sequence[int]) -> None:
        """Every model that is not there yet, seed by seed."""
        jobs = [(arm, seed) for seed in seeds for arm in ARMS[:2]] + [(ARMS[2], seed) for seed in seeds]
        self.each(self._train_one, jobs)

    def _train_one(self, arm: Arm, seed: int) -> None:
        root = self.root(arm, seed)
        if (root / "model" / "config.json").is_file():
            return
        last = ("--ckpt_path", "last") if (root / "checkpoints" / "last.ckpt").is_file() else ()
        shared = ("--seed_everything", str(seed), "--data.init_args.shards", f"[{self.out / 'shards'}]")
        seconds = self.run(*fit(arm.config, root), *shared, *last)
        before = _seconds(root) if last else 0.0  # a program that was killed itself left none: that shows as nan
        (root / "seconds.json").write_text(json.dumps(before + seconds))

    def score(self, seeds: Sequence[int]) -> None:
        """Every result that is not there yet."""
        roots = [self.root(arm, seed) for arm in ARMS for seed in seeds]
        self.side_by_side(
            (*scored(task, *TASKS[task]), "--model", str(root / "model"), "--out", str(result))
            for root in roots
            for task in TASKS
            if not (result := root / "results" / f"{task}.json").is_file()
        )

    def root(self, arm: Arm, seed: int) -> Path:
        """Where a model of an arm lies."""
        return self.out / f"{arm.name.replace(', ', '-').lower()}-{seed}"


def table(study: Study, seeds: Sequence[int]) -> str:
    """The scores as Markdown: the mean over seeds, and each."""
    found = {arm: [_scores(study.root(arm, seed)) for seed in seeds] for arm in ARMS}
    lines = ["| | " + " | ".join(arm.name for arm in ARMS) + " |", "|---" * (len(ARMS) + 1) + "|"]
    for title, task, metric, digits in ROWS:
        cells = [mean_and_each([one[task]["metrics"][metric] for one in found[arm]], digits) for arm in ARMS]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    drawn = [mean_and_each([one["t2i"]["seconds"] / one["t2i"]["n"] for one in found[arm]], 3) for arm in ARMS]
    lines.append("| seconds a drawing, all of the task | " + " | ".join(drawn) + " |")
    times = {arm: [_seconds(study.root(arm, seed)) for seed in seeds] for arm in ARMS}
    lines.append("| steps | " + " | ".join(f"{arm.steps:,}" for arm in ARMS) + " |")
    lines.append(
        "| minutes of training | " + " | ".join(mean_and_each([s / 60 for s in times[arm]], 1) for arm in ARMS) + " |"
    )
    speed = [mean_and_each([arm.steps * 12 * 288 / s for s in times[arm]], 0) for arm in ARMS]
    lines.append("| training, tokens a second | " + " | ".join(speed) + " |")
    return "\n".join(lines)


def pictures(study: Study, seed: int) -> Path:
    """One strip of drawings and one of edits for each arm, above each other, as a file beside the page."""
    rows = [
        [Image.open(path) for path in sorted(folder.glob("*_drawn.png"))[:SHOWN]]
        for task in ("t2i", "edit")
        for folder in (study.root(arm, seed) / "results" / f"{task}_examples" for arm in ARMS)
    ]
    side = 64
    sheet = Image.new("RGB", (SHOWN * (side + 4), len(rows) * (side + 4)), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(picture.resize((side, side)), (x * (side + 4), y * (side + 4)))
    path = HERE / "branches.png"
    sheet.save(path)
    return path


def _scores(root: Path) -> dict[str, Any]:
    return {task: json.loads((root / "results" / f"{task}.json").read_text()) for task in TASKS}


def _seconds(root: Path) -> float:
    timed = root / "seconds.json"
    return json.loads(timed.read_text()) if timed.is_file() else float("nan")


def main() -> int:
    """Prepare, train, score, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/branches"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--at-once", type=int, default=2)
    options = parser.parse_args()
    study = Study(out=options.out.resolve(), at_once=options.at_once)
    study.out.mkdir(parents=True, exist_ok=True)
    study.prepare()
    study.train(options.seeds)
    study.score(options.seeds)
    fill_in(HERE / "branches.md", table(study, options.seeds))
    pictures(study, options.seeds[0])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
