"""The study of docs/studies/eyes.md: one discrete decoder that draws codes, and sees pictures in six ways.

    python docs/studies/eyes.py --out runs/eyes

prepares what all share, trains and scores one model of each kind and seed, and writes the table of the page beside this
file. Every arm is a curriculum, most of one stage. Killed, it resumes when it is given again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from runner import ROOT, Programs, fill_in, fit, mean_and_each, scored

HERE = Path(__file__).resolve().parent
JOINT = 1200
"""Steps on the demo's documents."""
VIT = {"dim": 128, "num_layers": 3, "num_heads": 2, "hidden_dim": 384, "pos_embed_period": 10.0}
MOONVIT = {**VIT, "encoder": "moonvit", "merge": 2, "connector": "pixel_shuffle"}
FIRST: dict[str, int] = {"reading": 600, "edits": 700}
"""Steps of a stage before: of reading alone, or of reading and of edits, whose pictures are seen and drawn."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Arm:
    """One way to see. `patch` is the side in pixels of what becomes a token or a resampler's key; None sees codes."""

    name: str
    patch: int | None = None
    tokens: int = 64
    """Of an image that is seen."""
    vision: Mapping[str, Any] = field(default_factory=dict)
    first: str = ""
    """The stage before the demo's documents, one of FIRST."""

    @property
    def settings(self) -> dict[str, Any]:
        """Of all stages."""
        if self.patch is None:
            return {}
        seen: dict[str, Any] = {"data.init_args.templates.seen": "patches", "model.init_args.vision": dict(self.vision)}
        resampled = {"data.init_args.templates.resampled_tokens": self.tokens}
        return seen | (resampled if self.vision.get("connector") == "resampler" else {})

    @property
    def steps(self) -> list[int]:
        """Of each stage. The demo itself is one of 2,200 steps."""
        return [FIRST[self.first], JOINT] if self.first else [2200]


ARMS = (
    Arm(name="codes"),
    Arm(name="ViT, edits first", patch=8, vision=VIT, first="edits"),
    Arm(name="MoonViT, reading first", patch=16, tokens=16, vision=MOONVIT, first="reading"),
    Arm(name="MoonViT, edits first", patch=16, tokens=16, vision=MOONVIT, first="edits"),
    *(
        Arm(
            name=f"resampler to {tokens}, edits first",
            patch=8,
            tokens=tokens,
            vision={**VIT, "connector": "resampler"},
            first="edits",
        )
        for tokens in (16, 64)
    ),
)
ROWS = (
    ("questions right, 9,673", "vqa", "accuracy", 4),
    ("what color", "vqa", "accuracy_colour", 3),
    ("what shape", "vqa", "accuracy_shape", 3),
    ("captions exactly right, 888", "caption", "exact_match", 4),
    ("drawings, colour and shape right, 384", "t2i", "accuracy", 4),
)
TASKS: dict[str, tuple[str, ...]] = {
    "vqa": (),
    "caption": (),
    "t2i": ("--seeds-per-prompt", "16", "--guidance", "3"),
}
DOCUMENTS = ("dialogues=400", "shape_questions=4")
EDITS = ("dialogues=1", "edits=4000", "shape_questions=4")


class EyesStudy(Programs):
    """All programs of this one."""

    def prepare(self, arms: Sequence[Arm]) -> None:
        """The image tokenizer, and shards for each size of patches, with edits and without."""
        tokenizer = self.out / "tokenizer" / "image_tokenizer"
        if not tokenizer.is_dir():
            self.run(*fit("configs/tokenizer/demo.yaml", tokenizer.parent), "--model.init_args.out", str(tokenizer))
        for arm in dict.fromkeys((ARMS[0], *arms)):
            for edits in (False, True)[: 1 + (arm.first == "edits")]:
                if (self.shards(arm.patch, edits) / "manifest.json").is_file():
                    continue
                source = ["--source", "easy_vqa", "--copies", "2" if edits else "4", "--augment", "flip,place"]
                for option in EDITS if edits else DOCUMENTS:
                    source += ["--option", option]
                source += ["--patch", str(arm.patch)] if arm.patch else []
                made = ["--image-tokenizer", str(tokenizer), "--out", str(self.shards(arm.patch, edits))]
                words = self.shards(None) / "text_tokenizer" / "tokenizer.json"  # one vocabulary for all stages
                made += ["--text-tokenizer", str(words)] if words.is_file() else []
                self.unimodal("tokenize", *source, *made)

    def train(self, arms: Sequence[Arm], seeds: Sequence[int]) -> None:
        """Every model that is not there yet."""
        self.each(self._train_one, [(arm, seed) for seed in seeds for arm in arms])

    def _train_one(self, arm: Arm, seed: int) -> None:
        root = self.root(arm, seed)
        if (root / "seconds.json").is_file():
            return
        root.mkdir(parents=True, exist_ok=True)
        shared = {"seed_everything": seed, "samples.every": 0, **arm.settings}
        curriculum = {"curriculum": {"root": str(root), "shared": shared, "stages": self.stages(arm)}}
        path = root / "curriculum.yaml"
        path.write_text(yaml.safe_dump(curriculum))
        seconds = self.run("train.py", "fit", "--config", str(path))
        (root / "seconds.json").write_text(json.dumps(seconds))

    def score(self, arms: Sequence[Arm], seeds: Sequence[int]) -> None:
        """Every result that is not there yet."""
        self.side_by_side(
            (*scored(task, *TASKS[task]), "--model", str(self.model(arm, seed)), "--out", str(result))
            for arm in arms
            for seed in seeds
            for task in TASKS
            if not (result := self.root(arm, seed) / "results" / f"{task}.json").is_file()
        )

    def stages(self, arm: Arm) -> list[dict[str, Any]]:
        """Of its curriculum. In the first one, few questions are asked about each of many pictures."""
        configs = [str(ROOT / "configs" / "run" / "demo.yaml")]
        joint: dict[str, Any] = {"trainer.max_steps": arm.steps[-1]}
        joint["data.init_args.shards"] = [str(self.shards(arm.patch))]
        if not arm.first:
            return [{"name": "joint", "configs": configs, "settings": joint}]
        first = {
            "trainer.max_steps": arm.steps[0],
            "data.init_args.shards": [str(self.shards(arm.patch, arm.first == "edits"))],
            "data.init_args.templates.image_first": 1.0,
            "data.init_args.templates.max_branches": 4,
            "data.init_args.templates.drawn_image_weight": 1.0,
        }
        joint["model.init_args.start"] = {"codebook": None}  # the bundle has its embedding
        return [
            {"name": "alignment", "configs": configs, "settings": first},
            {"name": "joint", "configs": configs, "settings": joint},
        ]

    def shards(self, patch: int | None, edits: bool = False) -> Path:
        """Codes, and patches of this size."""
        return self.out / f"shards{'' if patch is None else f'-{patch}'}{'-edits' if edits else ''}"

    def root(self, arm: Arm, seed: int) -> Path:
        """Where a model of an arm lies."""
        return self.out / f"{arm.name.replace(', ', '-').replace(' ', '').lower()}-{seed}"

    def model(self, arm: Arm, seed: int) -> Path:
        """The bundle of its last stage."""
        return self.root(arm, seed) / f"{len(arm.steps)}-joint" / "model"


def table(study: EyesStudy, seeds: Sequence[int]) -> str:
    """The scores as Markdown: an arm that was scored a row, the mean over seeds, and each."""
    head = ["seen through", "tokens of an image", *(title for title, *_ in ROWS), "steps", "minutes of training"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for arm in ARMS:
        roots = [root for seed in seeds if (root := study.root(arm, seed)).joinpath("results", "t2i.json").is_file()]
        if not roots:
            continue
        scores = [
            mean_and_each([_metrics(root, task)[metric] for root in roots], digits) for _, task, metric, digits in ROWS
        ]
        minutes = mean_and_each([json.loads((root / "seconds.json").read_text()) / 60 for root in roots], 1)
        steps = " + ".join(f"{count:,}" for count in arm.steps)
        lines.append("| " + " | ".join([arm.name, str(arm.tokens), *scores, steps, minutes]) + " |")
    return "\n".join(lines)


def _metrics(root: Path, task: str) -> dict[str, float]:
    return json.loads((root / "results" / f"{task}.json").read_text())["metrics"]


def main() -> int:
    """Prepare, train, score, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/eyes"))
    parser.add_argument("--arms", nargs="+", choices=[arm.name for arm in ARMS], help="all by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--at-once", type=int, default=2)
    options = parser.parse_args()
    study = EyesStudy(out=options.out.resolve(), at_once=options.at_once)
    study.out.mkdir(parents=True, exist_ok=True)
    arms = [arm for arm in ARMS if options.arms is None or arm.name in options.arms]
    study.prepare(arms)
    study.train(arms, options.seeds)
    study.score(arms, options.seeds)
    fill_in(HERE / "eyes.md", table(study, options.seeds))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
