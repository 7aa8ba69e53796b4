"""Drawing taught to a model that writes and sees, by the head's rows of image codes alone (Anole, arXiv 2407.06135).

python docs/studies/anole.py --model runs/demo/model --shards runs/demo/shards --out runs/anole

The model's rows are drawn anew, so that it can no longer draw; configs/run/anole.yaml trains them again, and nothing
else. Drawings are scored before, without the rows, and after; answers to the official test questions have to be the
same strings all along. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from runner import Programs, fit, scored

from data_pipelines.failures import FailureLog
from data_pipelines.sources.registry import open_source
from unimodal.bundle import Bundle
from unimodal.evaluation.samples import read_samples
from unimodal.generation.pipeline import load
from unimodal.model.config import INIT_STD
from unimodal.terminal import say

MAX_NEW_TOKENS = 8
"""Of an answer."""


def without_image_rows(model: Path, out: Path) -> None:
    """A bundle whose head knows nothing of image codes."""
    bundle = Bundle.open(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        rows = bundle.model.token_head.weight[bundle.space.image_offset :]
        rows.copy_(torch.randn(rows.shape, generator=generator) * INIT_STD)
    shutil.rmtree(out, ignore_errors=True)
    bundle.save(out)


def answers(model: Path, pictures: int | None) -> list[str]:
    """To the questions about the first pictures of the official test split, all of them for None."""
    pipeline = load(model)
    source = open_source("easy_vqa", path=None, split="test", failures=FailureLog())
    samples = list(read_samples(source, pipeline, limit=pictures))
    prompts = [[sample.image, question.text] for sample in samples for question in sample.questions]
    found = pipeline.generate(prompts, mode="text", max_new_tokens=MAX_NEW_TOKENS)
    return ["".join(map(str, parts)) for parts in found]


class Anole(Programs):
    """All programs of this study."""

    def drawings(self, model: Path, name: str, seeds: int) -> float:
        """The share of drawings with the right shape and colour, guidance 3."""
        result = self.out / f"{name}.json"
        options = ("--seeds-per-prompt", str(seeds), "--guidance", "3")
        self.run(*scored("t2i", *options), "--model", str(model), "--out", str(result))
        return json.loads(result.read_text())["metrics"]["accuracy"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Reset, train, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/anole"))
    parser.add_argument(
        "--seeds", type=int, default=16, metavar="N", help="drawings of each of 24 captions (default 16)"
    )
    parser.add_argument(
        "--pictures", type=int, default=None, metavar="N", help="whose questions are asked; all by default"
    )
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    study = Anole(out=given.out, at_once=1)
    start, after = given.out / "start", given.out / "model"
    without_image_rows(given.model, start)
    command = fit("configs/run/anole.yaml", given.out / "training")
    settings = ("--model.init_args.start.bundle", str(start), "--data.init_args.shards", f"[{given.shards}]")
    seconds = study.run(*command, *settings, "--bundle.out", str(after))
    models = {"before": given.model, "without rows": start, "after": after}
    drawn = {name: study.drawings(path, name.replace(" ", "_"), given.seeds) for name, path in models.items()}
    said = [answers(path, given.pictures) for path in models.values()]
    changed = [sum(a != b for a, b in zip(said[0], other, strict=True)) for other in said[1:]]
    say(f"drawings right: {drawn}; {changed} of {len(said[0])} answers changed; {seconds:.0f} s of training")
    print(json.dumps({"drawings": drawn, "questions": len(said[0]), "changed": changed, "seconds": seconds}))  # noqa: T201
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
