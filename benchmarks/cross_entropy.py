"""What a cross-entropy over a large vocabulary costs: all logits at once beside a part at a time.

    python benchmarks/cross_entropy.py

Both compute the losses and gradients of the same tokens in turn, each in a process of its own, whose peak of memory
counts beyond what features, weight and their gradients take. One JSON line for each form and vocabulary; the largest
relative difference of the gradients is in the last.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from unimodal.model.token_head import plain_scores, scores_in_parts
from unimodal.training.precision import matmul_dtype

WIDTH = 512
REPEATS = 3
DTYPE = matmul_dtype(torch.device("cpu"))


def measure(form: str, vocabulary: int, tokens: int, gradients: Path) -> dict[str, Any]:
    """Seconds of forward and backward (median), and GiB beyond inputs and gradients."""
    torch.manual_seed(0)
    features = torch.randn(tokens, WIDTH).requires_grad_()
    weight = (torch.randn(vocabulary, WIDTH) * 0.05).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,))
    features.grad, weight.grad = torch.zeros_like(features), torch.zeros_like(weight)
    before, taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, list[float]()
    for _ in range(REPEATS):
        features.grad.zero_()
        weight.grad.zero_()
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=DTYPE.itemsize < 4):
            if form == "all at once":
                scores = plain_scores(torch.nn.functional.linear(features, weight), targets)
            else:
                scores = scores_in_parts(features, weight, targets)
        (scores.log_z - scores.of_targets + 1e-5 * scores.log_z**2).sum().backward()
        taken.append(time.perf_counter() - started)
    torch.save([features.grad, weight.grad], gradients)
    extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    return {"form": form, "vocabulary": vocabulary, "seconds": statistics.median(taken), "extra_gib": extra}


def main() -> None:
    """Every form and vocabulary in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[82_000, 262_000])
    parser.add_argument("--only", nargs=2, metavar=("FORM", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        form, file = options.only
        print(json.dumps(measure(form, options.vocabularies[0], options.tokens, Path(file))))
        return
    for vocabulary in options.vocabularies:
        with tempfile.TemporaryDirectory() as folder:
            files = {form: Path(folder) / form.replace(" ", "-") for form in ("all at once", "in parts")}
            for form, file in files.items():
                rest = ["--tokens", str(options.tokens), "--vocabularies", str(vocabulary), "--only", form, str(file)]
                done = subprocess.run([sys.executable, __file__, *rest], capture_output=True, text=True)
                print(done.stdout.strip() or f"{form}: {done.stderr.strip().splitlines()[-1:]}", flush=True)
            if all(file.exists() for file in files.values()):
                pairs = zip(*(torch.load(file, weights_only=True) for file in files.values()), strict=True)
                apart = max(float((one - other).norm() / one.norm()) for one, other in pairs)
                print(json.dumps({"vocabulary": vocabulary, "gradients_differ_by": apart, "type": str(DTYPE)}))


if __name__ == "__main__":
    main()
