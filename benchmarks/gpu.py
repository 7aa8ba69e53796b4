"""What one GPU shows: that it computes what the CPU does, how near training and decoding come to what it can do.

    python benchmarks/gpu.py --minutes 9 --out gpu.json

Torch, transformers, lightning and safetensors are enough; a part that needs more is left out, with its reason. Parts
run in the order of `PARTS` until the minutes are used up. One JSON line for each part goes to stdout as it ends, and
all of them into the file `--out`.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.gpu_parts import correctness, decoding, machine, training
from unimodal.generation.sampling import SamplingConfig

TOP_P = SamplingConfig(temperature=0.9, top_p=0.9)

PARTS: dict[str, tuple[Callable[[], Any], float]] = {
    "device": (machine.device, 0.1),
    "attention, plain": (lambda: correctness.attention(1000, branches=False, spans=0), 0.2),
    "attention, branches": (lambda: correctness.attention(1024, branches=True, spans=0), 0.2),
    "attention, pictures": (lambda: correctness.attention(1500, branches=True, spans=1), 0.2),
    "attention, noised pictures": (lambda: correctness.attention(2048, branches=False, spans=-1), 0.2),
    "attention, documents": (correctness.documents, 0.2),
    "token scores": (correctness.token_scores, 0.1),
    "optimizer": (correctness.optimizer_steps, 0.1),
    "losses": (correctness.losses, 0.3),
    "recorded decoding": (correctness.decoding, 0.5),
    "1B": (lambda: training.throughput("1B", 4, 4), 0.4),
    "1B, flex": (lambda: training.throughput("1B", 4, 4, flash=False), 0.4),
    "2B": (lambda: training.throughput("2B", 2, 4), 0.4),
    "0.3B": (lambda: training.throughput("0.3B", 8, 2), 0.4),
    "1B, Muon": (lambda: training.throughput("1B", 4, 4, muon=True), 0.4),
    "products of decoding": (decoding.products, 0.2),
    "attention of decoding": (decoding.attention, 0.2),
    "7B decoding": (lambda: decoding.images([(1, 1.0, decoding.PLAIN), (1, 3.0, decoding.PLAIN)]), 0.6),
    "7B decoding, top-p": (lambda: decoding.images([(1, 3.0, TOP_P)]), 0.6),
    "7B decoding, 32 rows": (lambda: decoding.images([(32, 1.0, decoding.PLAIN)]), 0.7),
    "where a step's time goes": (lambda: training.where_time_goes("1B", 4), 0.6),
}
"""What is measured, and about how many minutes it takes."""


def run(names: list[str], minutes: float, out: Path | None) -> dict[str, Any]:
    """Every part by name: its figures, or why there are none. A part that failed may leave the device in any state, so
    those after it run in a new process."""
    started, found = time.perf_counter(), dict[str, Any]()
    for number, name in enumerate(names):
        part, estimate = PARTS[name]
        left = minutes - (time.perf_counter() - started) / 60
        if left < estimate:
            found[name] = {"left out": f"{left:.1f} of {minutes:g} minutes were left, it takes about {estimate}"}
        else:
            since = time.perf_counter()
            found[name] = _figures(part)
            print(f"{name}: {time.perf_counter() - since:.1f} s", file=sys.stderr, flush=True)
        print(json.dumps({name: found[name]}), flush=True)
        if out is not None:
            out.write_text(json.dumps(found, indent=1) + "\n")
        if "failed" in found[name]:
            return found | _elsewhere(names[number + 1 :], minutes - (time.perf_counter() - started) / 60, found, out)
        gc.collect()
        torch.cuda.empty_cache()
        torch._dynamo.reset()
    return found


def _elsewhere(names: list[str], minutes: float, before: dict[str, Any], out: Path | None) -> dict[str, Any]:
    if not names:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rest.json"
        subprocess.run([sys.executable, __file__, "--minutes", f"{minutes}", "--out", path, "--parts", *names])
        rest = json.loads(path.read_text()) if path.exists() else {}
    if out is not None:
        out.write_text(json.dumps(before | rest, indent=1) + "\n")
    return rest


def _figures(part: Callable[[], Any]) -> Any:
    try:
        return part()
    except ImportError as error:
        return {"left out": f"{error.name} is not installed"}
    except Exception as error:  # one part that fails must not cost the others
        lines = str(error).strip().splitlines() or [""]
        return {"failed": f"{type(error).__name__}: {lines[0][:300]}"}


def main() -> None:
    """Exit code 1 where any part failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS), metavar="PART")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu.py: torch finds no CUDA device here; there is nothing to measure", file=sys.stderr)
        raise SystemExit(2)
    torch.set_float32_matmul_precision("high")
    found = run(arguments.parts, arguments.minutes, arguments.out)
    raise SystemExit(any("failed" in figures for figures in found.values()))


if __name__ == "__main__":
    main()
