"""What the monitors of a run cost, as a share of its steps.

A step of the demo's decoder, compiled and in bfloat16 where the CPU has units for it, and the passes of
unimodal/training/callbacks/monitors.py on one of its rows, in turn. The share is that of the default intervals. One
JSON line goes to stdout; ratio > 1 means that monitors cost less than 2% of a step.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, it does not see its neighbours otherwise
from benchmarks.train_step import DTYPE, SPACE, Data, Step, config_of, sized_parser, tell
from data_pipelines.batch import PackedBatch
from unimodal.model.branches.base import NO_MEDIA
from unimodal.model.masks import dense_mask
from unimodal.model.model import UnifiedModel
from unimodal.training.callbacks.monitors import Monitors
from unimodal.training.monitors.gradients import modality_gradients
from unimodal.training.monitors.measuring import measure_sample
from unimodal.training.monitors.observed import Observer
from unimodal.training.monitors.predictions import CodeUse
from unimodal.training.monitors.weights import Updates
from unimodal.training.objectives.next_token import next_token_terms

ALLOWED = 0.02
"""Of a step."""


def autocast() -> AbstractContextManager[Any]:
    """As training computes."""
    return torch.autocast("cpu", torch.bfloat16, enabled=DTYPE.itemsize < 4)


def observe(model: UnifiedModel, batch: PackedBatch, codes: CodeUse, updates: Updates) -> None:
    """All figures but the gradients."""
    updates.before(model)
    observer = Observer(model=model, rows=1, precision=autocast)
    found = measure_sample(observer, observer.sample(batch), NO_MEDIA, SPACE.image_offset)
    codes.add(found.predicted, found.targets, SPACE.image_offset)
    found.sums.over_ranks()
    updates.after(model).over_ranks()
    codes.figures()


def gradients(model: UnifiedModel, batch: PackedBatch) -> None:
    """The gradients of both modalities."""
    observer = Observer(model=model, rows=1, precision=autocast)
    part = observer.sample(batch)
    with observer.quietly():
        features = model(part.tokens, part.positions, dense_mask(part.documents, part.branches))
        terms = next_token_terms(features, model.token_head, part.targets, part.loss_weights, part.modality, 1e-5)
        modality_gradients(model, terms)


def timed(function: Any, *given: Any) -> float:
    """Seconds."""
    start = time.perf_counter()
    function(*given)
    return time.perf_counter() - start


def parse() -> argparse.Namespace:
    """The command line; the sizes are the demo's."""
    sizes = {"dim": 192, "layers": 4, "heads": 3, "kv_heads": 1, "hidden": 512, "length": 288, "rows": 8, "runs": 20}
    return sized_parser(__doc__, **sizes).parse_args()


def main() -> int:
    """Measure and print."""
    options, usual = parse(), Monitors()
    torch.manual_seed(0)
    data = Data.make(options.length, options.rows)
    step, codes, updates = Step(UnifiedModel(config_of(options)), compile=True), CodeUse(), Updates()
    batches = itertools.cycle(data.batches)
    found: dict[str, list[float]] = {"step": [], "figures": [], "gradients": []}
    for run in range(options.runs + 2):
        seconds = {
            "step": timed(step.run, next(batches)),
            "figures": timed(observe, step.model, next(batches), codes, updates),
            "gradients": timed(gradients, step.model, next(batches)),
        }
        for name, each in seconds.items():
            found[name] += [each] if run >= 2 else []
    middle = {name: statistics.median(values) for name, values in found.items()}
    share = (middle["figures"] / usual.every + middle["gradients"] / usual.gradients_every) / middle["step"]
    tell("  ".join(f"{name} {1000 * seconds:.1f} ms" for name, seconds in middle.items()))
    line = {
        "name": "monitors_share_of_a_step",
        "unit": "share",
        "ours": share,
        "theirs": ALLOWED,
        "ratio": ALLOWED / share,
        "runs": options.runs,
        "device": f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    print(json.dumps(line))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
