"""The planner against real steps: the peak that it predicts, and the memory that a process on the CPU came to hold.

    python benchmarks/planner.py

Each setting is taken for three steps in a process of its own, eagerly and in float32. What is measured is the largest
resident size, less what was resident before the model was built. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from unimodal.model.config import ModelConfig, TransformerConfig
from unimodal.model.model import UnifiedModel
from unimodal.training.optimizers.build import AdamWConfig, MuonConfig, build_optimizer
from unimodal.training.parallel.activations import checkpoint_activations
from unimodal.training.parallel.estimate import PlannedSetting, packed_text, take_step, trace_memory

SETTINGS: dict[str, dict[str, Any]] = {
    "AdamW": {"dim": 768, "layers": 12, "rows": 4, "length": 1024},
    "Muon": {"dim": 768, "layers": 12, "rows": 4, "length": 1024, "muon": True},
    "block checkpointing": {"dim": 768, "layers": 12, "rows": 8, "length": 1024, "kept": "block"},
    "selective checkpointing": {"dim": 768, "layers": 12, "rows": 8, "length": 1024, "kept": "selective"},
    "short rows": {"dim": 512, "layers": 8, "rows": 24, "length": 256},
    "long rows": {"dim": 512, "layers": 8, "rows": 2, "length": 2048},
    "large vocabulary": {"dim": 512, "layers": 4, "rows": 2, "length": 1024, "vocab": 65536},
    "wide": {"dim": 1536, "layers": 4, "rows": 2, "length": 1024},
    "deep": {"dim": 384, "layers": 32, "rows": 4, "length": 1024},
}
DOCUMENT = 300


def parts(values: dict[str, Any]) -> tuple[ModelConfig, Any, PlannedSetting, Any]:
    """Model, optimizer, setting and batch."""
    dim, vocab = values["dim"], values.get("vocab", 8192)
    shape = {"num_layers": values["layers"], "num_heads": dim // 64, "hidden_dim": 4 * dim, "max_length": 4096}
    config = ModelConfig(vocab_size=vocab, trunk=TransformerConfig(dim=dim, **shape))
    setting = PlannedSetting(
        layout="ddp",
        rows=values["rows"],
        length=values["length"],
        activation_checkpointing=values.get("kept", "none"),
        dtype=None,
    )
    batch = packed_text(setting.rows, setting.length, DOCUMENT, vocab)
    return config, MuonConfig() if values.get("muon") else AdamWConfig(), setting, batch


def measure(values: dict[str, Any]) -> int:
    """Bytes that this process came to hold for three steps."""
    config, optimizer, setting, batch = parts(values)
    _ = batch.facts
    small = replace(
        config, vocab_size=64, trunk=replace(config.trunk, dim=64, num_heads=1, num_layers=1, hidden_dim=64)
    )
    warm_up = UnifiedModel(small)  # what libraries allocate once
    take_step(warm_up, build_optimizer(warm_up, optimizer), packed_text(1, 64, 20, 64), setting)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    model = UnifiedModel(config)
    checkpoint_activations(model, setting.activation_checkpointing)
    steps = build_optimizer(model, optimizer)
    for _ in range(3):
        take_step(model, steps, batch, setting)
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def main() -> None:
    """All settings, or the one of `--measure` in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure")
    name = parser.parse_args().measure
    if name:
        print(measure(SETTINGS[name]))
        return
    found: dict[str, dict[str, float]] = {}
    for name, values in SETTINGS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            planned = trace_memory(*parts(values)).peak
        command = [sys.executable, __file__, "--measure", name]
        environment = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "2"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        taken = int(done.stdout.split()[-1])
        found[name] = {"planned_mib": planned >> 20, "taken_mib": taken >> 20, "error": round(planned / taken - 1, 3)}
        print(f"{name:<26}{planned >> 20:>8,} MiB planned {taken >> 20:>8,} MiB taken {found[name]['error']:>+8.1%}")
    worst = max(abs(one["error"]) for one in found.values())
    print(json.dumps({"benchmark": "planner_error", "threads": torch.get_num_threads(), "worst": worst, **found}))


if __name__ == "__main__":
    main()
