"""How many tokens does a pass give with drafts, and how much sooner are answers there?

A trained bundle draws captions of the easy-VQA kind, with guidance and without, and describes pictures that it drew;
steps are compiled. Each kind of work is decoded in turn without drafts and with drafts whose number is measured, at
batch 1 and 16: one JSON line for each, and one for the tokens of a pass. `--table` prints the drafters one by one for
several windows instead. Answers are compared id for id: in float32 sums in another order let a tie fall the other way
now and then, and the number of such answers is printed.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, it does not see its neighbours otherwise
import unimodal
from unimodal.evaluation.tasks.t2i import colour_shape_captions
from unimodal.generation.drafts.above import CodeAbove
from unimodal.generation.drafts.base import Drafter, Drafting
from unimodal.generation.drafts.jacobi import Jacobi
from unimodal.generation.drafts.multi_token import MultiTokenDrafter
from unimodal.generation.drafts.prompt_lookup import PromptLookup
from unimodal.generation.drafts.usual import usual_drafting
from unimodal.generation.engine import Engine
from unimodal.generation.forward import Forward, Predicted
from unimodal.generation.pipeline import Pipeline
from unimodal.generation.requests import Decoded, Request
from unimodal.model.cache import KVCache

QUESTION = "describe the image"
ROWS = (1, 16)
WINDOWS = (1, 3, 7, 15)


class CountedForward:
    """Counts passes, by the row."""

    def __init__(self, forward: Forward) -> None:
        self.forward, self.recordable, self.stepping = forward, forward.recordable, forward.stepping
        self.row_passes = 0

    def __call__(self, tokens: Tensor, positions: Tensor, slots: Tensor, cache: KVCache, used: int) -> Predicted:
        """See `Forward`."""
        self.row_passes += len(tokens)
        return self.forward(tokens, positions, slots, cache, used)


@dataclass(frozen=True)
class Measured:
    """Answers of one run, its seconds, and its passes over one row each."""

    answers: list[Decoded]
    seconds: float
    passes: int

    @property
    def tokens(self) -> int:
        """That were sampled."""
        return sum(len(answer.ids) for answer in self.answers)


class Bench:
    """One bundle, and the requests of each kind of work."""

    def __init__(self, bundle: str, count: int) -> None:
        self.pipeline: Pipeline = unimodal.load(bundle, compile=True)
        forward = self.pipeline.engine.forward
        assert forward is not None
        self.forward = CountedForward(forward)
        self.pipeline.engine.forward = self.forward
        captions = colour_shape_captions()
        captions = (captions * (1 + count // len(captions)))[:count]
        self.work = {
            "image_guided": self._requests(captions, mode="image", guidance=3.0),
            "image": self._requests(captions, mode="image", guidance=1.0),
        }
        drawn = self.pipeline.generate(captions, "image", guidance=3.0)
        asked = [[*(part for part in parts if not isinstance(part, str)), QUESTION] for parts in drawn]
        self.work["text"] = self._requests(asked, mode="text", max_new_tokens=48)

    def _requests(self, prompts: Sequence[Any], **settings: Any) -> list[Request]:
        config = self.pipeline.decode_config(**settings)
        return [
            request for seed, prompt in enumerate(prompts) for request in self.pipeline.requests([prompt], config, seed)
        ]

    def decode(self, requests: Sequence[Request], rows: int, drafting: Drafting) -> Measured:
        """All requests, so many side by side."""
        engine = self.pipeline.engine
        engine = Engine(engine.model, engine.space, self.forward, engine.painter, engine.reading, drafting)
        before, start = self.forward.row_passes, time.perf_counter()
        answers = engine.decode(requests, rows=rows)
        return Measured(answers, time.perf_counter() - start, self.forward.row_passes - before)

    def drafters(self) -> dict[str, tuple[Drafter, ...]]:
        """By name, each alone and the usual ones."""
        head = self.pipeline.model.multi_token_head
        multi: dict[str, tuple[Drafter, ...]] = {"multi-token heads": (MultiTokenDrafter(head),)} if head else {}
        alone = {"Jacobi": (Jacobi(),), "code above": (CodeAbove(),), "look-up": (PromptLookup(),)}
        usual = usual_drafting(self.pipeline.model, 1).drafters
        return {**multi, **alone, "all": usual}


def in_turn(
    bench: Bench, requests: Sequence[Request], rows: int, runs: int, drafting: Drafting
) -> tuple[list[Measured], list[Measured]]:
    """Without and with drafts, one after the other."""
    plain, drafted = [], []
    for _ in range(runs):
        plain.append(bench.decode(requests, rows, Drafting()))
        drafted.append(bench.decode(requests, rows, drafting))
    return plain, drafted


def changed(one: Measured, other: Measured) -> int:
    """Answers that differ."""
    return sum(a.ids != b.ids for a, b in zip(one.answers, other.answers, strict=True))


def compare(bench: Bench, runs: int) -> None:
    """Drafts whose number is measured against none."""
    for name, requests in bench.work.items():
        for rows in ROWS:
            drafting = usual_drafting(bench.pipeline.model, "auto")
            bench.decode(requests, rows, drafting)  # compiles, and measures the windows
            plain, drafted = in_turn(bench, requests, rows, runs, drafting)
            seconds = [statistics.median(run.seconds for run in each) for each in (drafted, plain)]
            tokens = plain[0].tokens
            result = {
                "name": f"speculative_{name}_b{rows}",
                "unit": "tokens/s",
                "ours": tokens / seconds[0],
                "theirs": tokens / seconds[1],
                "ratio": seconds[1] / seconds[0],
                "passes": drafted[-1].passes / plain[-1].passes,
                "changed": f"{changed(plain[-1], drafted[-1])} of {len(requests)}",
                "runs": runs,
                "device": f"{platform.machine()} CPU, {torch.get_num_threads()} threads, {bench.pipeline.model.dtype}",
                "versions": {"python": platform.python_version(), "torch": torch.__version__},
            }
            print(json.dumps(result), flush=True)


def table(bench: Bench) -> None:
    """Passes that remain and the speed against no drafts, at batch 1; Markdown on stderr."""
    tell("| work | drafter | drafts | passes of plain decoding | speed of plain decoding | changed answers |")
    tell("|---|---|---|---|---|---|")
    for name, requests in bench.work.items():
        for title, drafters in bench.drafters().items():
            for window in WINDOWS:
                plain, drafted = in_turn(bench, requests, 1, 1, Drafting(drafters, window))
                share = drafted[0].passes / plain[0].passes
                speed = plain[0].seconds / drafted[0].seconds
                differ = changed(plain[0], drafted[0])
                tell(f"| {name} | {title} | {window} | {share:.3f} | {speed:.2f} | {differ} of {len(requests)} |")


def tell(text: str) -> None:
    """A line for people."""
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="runs/demo/model", help="a trained model (default: the demo's)")
    parser.add_argument("--requests", type=int, default=48, metavar="N", help="of each kind of work (default 48)")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="runs in turn (default 3)")
    parser.add_argument("--table", action="store_true", help="print the drafters one by one instead")
    options = parser.parse_args(arguments)
    if not Path(options.bundle).is_dir():
        tell(f"{options.bundle} is no bundle: run `make demo` first, or name another with --bundle")
        return
    bench = Bench(options.bundle, options.requests)
    table(bench) if options.table else compare(bench, options.runs)


if __name__ == "__main__":
    main()
