"""The study of docs/studies/branches.md: the discrete branch and the flow branch on the same trunk, data and time.

    python docs/studies/branches.py --out runs/branches

trains what is not trained yet, scores what is not scored yet, and writes the page beside this file. Killed, it goes on
when it is given again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from unimodal.cli import main as unimodal
from unimodal.training.cli import main as train

HERE = Path(__file__).resolve().parent
CONFIGS = {"discrete": "configs/run/easy_vqa_edits.yaml", "flow": "configs/run/easy_vqa_flow.yaml"}
TASKS: dict[str, tuple[str, ...]] = {
    "vqa": (),
    "caption": (),
    "t2i": ("--seeds-per-prompt", "16", "--guidance", "3"),
    "edit": ("--limit", "384", "--guidance", "2"),
}
ROWS = (
    ("questions right", "vqa", "accuracy"),
    ("captions exactly right", "caption", "exact_match"),
    ("drawings, colour and shape right", "t2i", "accuracy"),
    ("edits, colour and shape right", "edit", "accuracy"),
    ("edits, colour right", "edit", "colour"),
    ("edits, PSNR against the known answer, dB", "edit", "psnr"),
    ("edits, PSNR outside the shape, dB", "edit", "psnr_rest"),
    ("edits, still in the old colour", "edit", "copied"),
)
PICTURES = 12


def prepare(out: Path, do: Callable[[str, Sequence[str]], None]) -> None:
    """Both tokenizers and the shards that both branches train on."""
    tokenizer, autoencoder = out / "tokenizer" / "image_tokenizer", out / "autoencoder" / "image_autoencoder"
    if not tokenizer.is_dir():
        root = ("--trainer.default_root_dir", str(out / "tokenizer"), "--model.init_args.out", str(tokenizer))
        do("train.py", ("fit", "--config", "configs/tokenizer/demo.yaml", *root))
    if not autoencoder.is_dir():
        root = ("--trainer.default_root_dir", str(out / "autoencoder"), "--model.init_args.out", str(autoencoder))
        do("train.py", ("fit", "--config", "configs/tokenizer/easy_vqa_kl.yaml", *root))
    if not (out / "shards" / "manifest.json").is_file():
        what = ("--source", "easy_vqa", "--option", "dialogues=400", "--option", "edits=3000")
        made = ("--image-tokenizer", str(tokenizer), "--autoencoder", str(autoencoder), "--out", str(out / "shards"))
        do("unimodal", ("tokenize", *what, *made, "--copies", "4", "--augment", "flip,place"))


def run_one(out: Path, branch: str, seed: int, do: Callable[[str, Sequence[str]], None]) -> Path:
    """Train and score one model; returns its folder."""
    root = out / f"{branch}-{seed}"
    if not (root / "model" / "config.json").is_file():
        started = time.perf_counter()
        where = ("--trainer.default_root_dir", str(root), "--data.init_args.shards", f"[{out / 'shards'}]")
        last = ("--ckpt_path", "last") if (root / "checkpoints" / "last.ckpt").is_file() else ()
        do("train.py", ("fit", "--config", CONFIGS[branch], "--seed_everything", str(seed), *where, *last))
        (root / "seconds.json").write_text(json.dumps(time.perf_counter() - started))
    for task, options in TASKS.items():
        result = root / "results" / f"{task}.json"
        if not result.is_file():
            source = ("--source", "easy_vqa", "--split", "test", "--model", str(root / "model"))
            do("unimodal", ("evaluate", "--task", task, *source, "--out", str(result), *options))
    return root


def scores(root: Path) -> dict[str, Any]:
    """Every metric of a model, by task."""
    return {task: json.loads((root / "results" / f"{task}.json").read_text()) for task in TASKS}


def page(roots: dict[str, list[Path]], about: str) -> str:
    """The study as Markdown."""
    found = {branch: [scores(root) for root in of_branch] for branch, of_branch in roots.items()}
    lines = ["| | " + " | ".join(roots) + " |", "|---" * (len(roots) + 1) + "|"]
    for title, task, metric in ROWS:
        values = [[one[task]["metrics"][metric] for one in found[branch]] for branch in roots]
        lines.append(f"| {title} | " + " | ".join(map(_both, values)) + " |")
    drawn = [[one["t2i"]["seconds"] / one["t2i"]["n"] for one in found[branch]] for branch in roots]
    lines.append("| seconds a drawing, all of the task | " + " | ".join(map(_both, drawn)) + " |")
    speed = [[_tokens_per_second(root) for root in of_branch] for of_branch in roots.values()]
    lines.append(
        "| training, tokens a second | " + " | ".join(", ".join(f"{v:,.0f}" for v in row) for row in speed) + " |"
    )
    ceiling = found["discrete"][0]["edit"]["metrics"]["ceiling_psnr"]
    return "\n".join(
        [about, "", *lines, "", f"Reconstruction of the known answers by the codes: {ceiling:.1f} dB.", ""]
    )


def _both(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.4g}"
    return f"{statistics.mean(values):.4g} ({', '.join(f'{value:.4g}' for value in values)})"


def _tokens_per_second(root: Path) -> float:
    """Of the whole training, with compiling, validation and samples; 0 where it was not timed."""
    timed = root / "seconds.json"
    if not timed.is_file():
        return 0.0
    config = yaml.safe_load(next((root / "logs").glob("version_*/config.yaml")).read_text())
    stream = config["data"]["init_args"]["stream"]
    return config["trainer"]["max_steps"] * stream["rows"] * stream["length"] / json.loads(timed.read_text())


def main() -> int:
    """Train, score, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/branches"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()

    def do(program: str, arguments: Sequence[str]) -> None:
        print("$", program, *arguments, flush=True)  # noqa: T201
        if {"train.py": train, "unimodal": unimodal}[program](list(arguments)):
            raise SystemExit(f"{program} {arguments[0]} failed")

    prepare(options.out, do)
    roots = {branch: [run_one(options.out, branch, seed, do) for seed in options.seeds] for branch in CONFIGS}
    introduction = (HERE / "branches.md").read_text().split("<!-- table -->")
    table = page(roots, "")
    (HERE / "branches.md").write_text("<!-- table -->".join([introduction[0], table, introduction[-1]]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
