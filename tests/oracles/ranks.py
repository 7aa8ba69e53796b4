"""A script on several processes of this machine, as torchrun starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.oracles.tiny_training import ROOT


def on_ranks(script: str, folder: Path, ranks: int, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Runs Python code, written to `folder`, once on each of `ranks` ranks of one thread each."""
    path = folder / "ranks.py"
    path.write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), str(path)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
