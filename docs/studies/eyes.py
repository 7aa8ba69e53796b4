"""The study of docs/studies/eyes.md: one discrete decoder that draws codes, and sees pictures in six ways.

    python docs/studies/eyes.py --out runs/eyes

prepares what all share, trains and scores one model of each kind and seed, and writes the table of the page beside this
file. Every arm is a curriculum, most of one stage. Killed, it resumes when it is given again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from runner import ROOT, Programs, fill_in, fit, mean_and_each, scored

HERE = Path(__file__).resolve().parent
STEPS = 1800
"""Of an arm that trains in one stage."""
VIT = {"dim": 128, "num_layers": 3, "num_heads": 2, "hidden_dim": 384, "pos_embed_period": 10.0}
SEEN = {"data.init_args.templates.seen": "patches"}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to see. `patch` is the side in pixels of what becomes a token or a resampler's key; None sees codes."""

    name: str
    patch: int | None = None
    tokens: int = 64
    """Of an image that is seen."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    stages: tuple[Mapping[str, Any], ...] = ({"name": "joint", "settings": {"trainer.max_steps": STEPS}},)


def with_vit(**more: Any) -> dict[str, Any]:
    """Settings of a model that sees through a ViT."""
    return {**SEEN, "model.init_args.vision": {**VIT, **more}}


ALIGNED = (
    {
        "name": "alignment",
        "settings": {
            "trainer.max_steps": 600,
            "data.init_args.templates.image_first": 1.0,
            "data.init_args.templates.max_branches": 4,
        },
    },
    {"name": "joint", "settings": {"trainer.max_steps": 1200, "model.init_args.start": {"codebook": None}}},
)
"""First reading alone, with few questions about each of many pictures; then the demo's documents."""
ARMS = (
    Arm(name="codes"),
    Arm(name="ViT", patch=8, settings=with_vit()),
    Arm(name="ViT, staged", patch=8, settings=with_vit(), stages=ALIGNED),
    Arm(
        name="MoonViT, 2 x 2",
        patch=16,
        tokens=16,
        settings=with_vit(encoder="moonvit", merge=2, connector="pixel_shuffle"),
        stages=ALIGNED,
    ),
    *(
        Arm(
            name=f"resampler, {tokens}",
            patch=8,
            tokens=tokens,
            settings={
                **with_vit(connector="resampler"),
                "data.init_args.templates.resampled_tokens": tokens,
            },
            stages=ALIGNED,
        )
        for tokens in (16, 64)
    ),
)
ROWS = (
    ("questions right, 9,673", "vqa", "accuracy", 4),
    ("captions exactly right, 888", "caption", "exact_match", 4),
    ("drawings, colour and shape right, 384", "t2i", "accuracy", 4),
)
TASKS: dict[str, tuple[str, ...]] = {
    "vqa": (),
    "caption": (),
    "t2i": ("--seeds-per-prompt", "16", "--guidance", "3"),
}
DOCUMENTS = ("dialogues=400", "shape_questions=4")


class EyesStudy(Programs):
    """All programs of this one."""

    def prepare(self) -> None:
        """The image tokenizer, and shards for each size of patches."""
        tokenizer = self.out / "tokenizer" / "image_tokenizer"
        if not tokenizer.is_dir():
            self.run(*fit("configs/tokenizer/demo.yaml", tokenizer.parent), "--model.init_args.out", str(tokenizer))
        for patch in dict.fromkeys(arm.patch for arm in ARMS):
            if (self.shards(patch) / "manifest.json").is_file():
                continue
            source = ["--source", "easy_vqa", "--copies", "4", "--augment", "flip,place"]
            for option in DOCUMENTS:
                source += ["--option", option]
            source += ["--patch", str(patch)] if patch else []
            self.unimodal("tokenize", *source, "--image-tokenizer", str(tokenizer), "--out", str(self.shards(patch)))

    def train(self, seeds: Sequence[int]) -> None:
        """Every model that is not there yet."""
        with ThreadPoolExecutor(self.at_once) as pool:
            list(pool.map(lambda job: self._train_one(*job), [(arm, seed) for seed in seeds for arm in ARMS]))

    def _train_one(self, arm: Arm, seed: int) -> None:
        root = self.root(arm, seed)
        if (root / "seconds.json").is_file():
            return
        root.mkdir(parents=True, exist_ok=True)
        stages = [{**stage, "configs": [str(ROOT / "configs" / "run" / "demo.yaml")]} for stage in arm.stages]
        shared = {"data.init_args.shards": [str(self.shards(arm.patch))], "seed_everything": seed, **arm.settings}
        curriculum = {"curriculum": {"root": str(root), "shared": shared, "stages": stages}}
        path = root / "curriculum.yaml"
        path.write_text(yaml.safe_dump(curriculum))
        seconds = self.run("train.py", "fit", "--config", str(path))
        (root / "seconds.json").write_text(json.dumps(seconds))

    def score(self, seeds: Sequence[int]) -> None:
        """Every result that is not there yet."""
        self.side_by_side(
            (*scored(task, *TASKS[task]), "--model", str(self.model(arm, seed)), "--out", str(result))
            for arm in ARMS
            for seed in seeds
            for task in TASKS
            if not (result := self.root(arm, seed) / "results" / f"{task}.json").is_file()
        )

    def shards(self, patch: int | None) -> Path:
        """Codes, and patches of this size."""
        return self.out / ("shards" if patch is None else f"shards-{patch}")

    def root(self, arm: Arm, seed: int) -> Path:
        """Where a model of an arm lies."""
        return self.out / f"{arm.name.replace(', ', '-').replace(' ', '').lower()}-{seed}"

    def model(self, arm: Arm, seed: int) -> Path:
        """The bundle of its last stage."""
        return self.root(arm, seed) / f"{len(arm.stages)}-{arm.stages[-1]['name']}" / "model"


def table(study: EyesStudy, seeds: Sequence[int]) -> str:
    """The scores as Markdown: an arm a row, the mean over seeds, and each."""
    head = ["seen through", "tokens of an image", *(title for title, *_ in ROWS), "steps", "minutes of training"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for arm in ARMS:
        roots = [study.root(arm, seed) for seed in seeds]
        scores = [
            mean_and_each([_metrics(root, task)[metric] for root in roots], digits) for _, task, metric, digits in ROWS
        ]
        minutes = mean_and_each([json.loads((root / "seconds.json").read_text()) / 60 for root in roots], 1)
        steps = " + ".join(f"{stage['settings']['trainer.max_steps']:,}" for stage in arm.stages)
        lines.append("| " + " | ".join([arm.name, str(arm.tokens), *scores, steps, minutes]) + " |")
    return "\n".join(lines)


def _metrics(root: Path, task: str) -> dict[str, float]:
    return json.loads((root / "results" / f"{task}.json").read_text())["metrics"]


def main() -> int:
    """Prepare, train, score, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/eyes"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--at-once", type=int, default=2)
    options = parser.parse_args()
    study = EyesStudy(out=options.out.resolve(), at_once=options.at_once)
    study.out.mkdir(parents=True, exist_ok=True)
    study.prepare()
    study.train(options.seeds)
    study.score(options.seeds)
    fill_in(HERE / "eyes.md", table(study, options.seeds))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
