"""What does a mixture of experts cost beside a dense model with as many active parameters?

Both have the demo's shape; of eight experts a token takes two, beside a shared one. Forward and backward passes over
batches of packed text and codes, other ones each time, are timed in turn: `moe_per_flop` compares the time for one
active operation, and `moe_per_second` the batches a second. One JSON line for each goes to stdout. Figures:
docs/results.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, it does not see its neighbours otherwise
from data_pipelines.batch import PackedBatch
from unimodal.model.config import ModelConfig, TransformerConfig
from unimodal.model.feedforward.config import MoEConfig
from unimodal.model.flops import active_parameters, flops_per_token
from unimodal.model.inference.compiling import compile_blocks
from unimodal.model.model import UnifiedModel
from unimodal.training.objectives.base import Terms, total
from unimodal.training.objectives.usual import usual_objectives
from unimodal.training.packed_pass import packed_features
from unimodal.training.parallel.estimate import packed_text
from unimodal.training.precision import matmul_dtype

TRUNK = TransformerConfig(dim=192, num_layers=4, num_heads=3, num_kv_heads=1, hidden_dim=512, max_length=512)
EXPERTS = MoEConfig(experts=8, top_k=2, shared=1, hidden_dim=168, first_dense=0, image_ids_from=1000)
VOCABULARY = 2000
ROWS, LENGTH, DOCUMENT = 8, 288, 96


def model_of(moe: MoEConfig | None) -> UnifiedModel:
    """Random weights, compiled blocks."""
    torch.manual_seed(0)
    model = UnifiedModel(ModelConfig(vocab_size=VOCABULARY, trunk=replace(TRUNK, moe=moe))).train()
    compile_blocks(model)
    return model


def step(model: UnifiedModel, batch: PackedBatch) -> float:
    """Seconds of a forward and a backward pass."""
    start, dtype = time.perf_counter(), matmul_dtype(torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        features, terms = packed_features(model, batch, {}), Terms()
        for objective in usual_objectives(flow=False, multi_token=False, experts=bool(model.config.trunk.moe)):
            state = objective.prepare(model, batch, {}, 0).state
            terms |= objective.terms(model, features, batch, state)
        total(terms).backward()
    model.zero_grad(set_to_none=True)
    return time.perf_counter() - start


def random_batch(seed: int) -> PackedBatch:
    """Other tokens each time, so that experts get other numbers of them, as in training."""
    batch = packed_text(ROWS, LENGTH, DOCUMENT, VOCABULARY)
    tokens = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(seed))
    return dataclasses.replace(batch, tokens=tokens, targets=tokens)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, metavar="N", help="steps in turn (default 20)")
    options = parser.parse_args(arguments)
    batches = [random_batch(seed) for seed in range(options.runs + 3)]
    models = [model_of(EXPERTS), model_of(None)]
    for model in models:
        for batch in batches[:3]:
            step(model, batch)
    seconds: list[list[float]] = [[], []]
    for batch in batches[3:]:
        for model, found in zip(models, seconds, strict=True):
            found.append(step(model, batch))
    moe, dense = (statistics.median(found) for found in seconds)
    operations = [flops_per_token(model, DOCUMENT) * ROWS * LENGTH for model in models]
    active = [active_parameters(model) for model in models]
    all_of_them = [sum(parameter.numel() for parameter in model.parameters()) for model in models]
    print(f"active parameters {active}, all {all_of_them}", file=sys.stderr)
    figures = {
        "moe_per_flop": ("GFLOP/s", operations[0] / moe / 1e9, operations[1] / dense / 1e9),
        "moe_per_second": ("batches/s", 1 / moe, 1 / dense),
    }
    for name, (unit, ours, theirs) in figures.items():
        result = {"name": name, "unit": unit, "ours": ours, "theirs": theirs, "ratio": ours / theirs}
        result |= {"runs": options.runs, "versions": {"python": platform.python_version(), "torch": torch.__version__}}
        result["device"] = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
