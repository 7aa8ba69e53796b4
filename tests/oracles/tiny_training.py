"""Tiny training runs: the command line of one, and a callback that stops time so that a run can be killed."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

ROOT = Path(__file__).resolve().parents[2]

Options = dict[str, str | float]
"""Of `fit_arguments`."""


def flow_objectives(**settings: float) -> Options:
    """Next-token prediction and flow matching of these settings."""
    flow = ", ".join(f"{name}: {value}" for name, value in settings.items())
    return {"model__objectives": f"[{{class_path: NextToken}}, {{class_path: FlowMatching, init_args: {{{flow}}}}}]"}


FLOW: Options = {"model__flow": "{}", **flow_objectives(weight=0.5), "data__templates__drawn": "latents"}
"""Images are drawn as latents, by a mixture."""
VISION: Options = {
    "model__vision": "{dim: 16, num_layers: 1, num_heads: 2, hidden_dim: 24}",
    "data__templates__seen": "patches",
    "data__templates__patch_size": 4,
}
"""Images are seen through a ViT."""
ADAMW: Options = {
    "model__optimizer": "AdamWConfig",
    "model__optimizer__eps": 1e-3,
    "model__optimizer__learning_rate": 0.01,
}


class Standstill(L.Callback):
    """After optimizer step `step`, touches `flag` and never goes on."""

    def __init__(self, step: int, flag: Path) -> None:
        super().__init__()
        self.step, self.flag = step, Path(flag)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        del pl_module, outputs, batch, batch_idx
        if trainer.global_step == self.step:
            self.flag.touch()
            time.sleep(3600)


class LossFile(L.Callback):
    """Appends `step loss`, every digit of it, to `path` after each optimizer step; what is written outlives a kill."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.last = Path(path), 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        del pl_module
        self.last = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        del pl_module, outputs, batch, batch_idx
        if trainer.is_global_zero and trainer.global_step > self.last:
            self.last = trainer.global_step
            loss = float(trainer.callback_metrics["train/loss"])
            with self.path.open("a") as file:
                file.write(f"{trainer.global_step} {loss.hex()}\n")


class GradientFile(L.Callback):
    """Saves the gradients of the first optimizer step as the optimizer had them, whole ones whatever ranks share."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.done = Path(path), False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        del outputs, batch, batch_idx
        if trainer.global_step == 1 and not self.done:
            self.done = True
            gradients = {name: each.grad for name, each in pl_module.named_parameters() if each.grad is not None}
            whole = {name: full_tensor(each).clone() for name, each in gradients.items()}
            if trainer.is_global_zero:
                save_file(whole, self.path)


def full_tensor(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def losses(path: Path) -> list[tuple[int, str]]:
    """The whole lines of a LossFile, in the order they were written."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [(int(step), loss) for step, loss in (line.split() for line in lines)]


def fit_arguments(shards: Path, root: Path, **options: str | float) -> list[str]:
    """`fit` on two small layers; `options` overrides, with dots written as `__`."""
    settings: dict[str, str | float] = {
        "trainer.max_steps": 12,
        "trainer.accelerator": "cpu",
        "trainer.precision": "32-true",
        "trainer.log_every_n_steps": 1,
        "trainer.default_root_dir": str(root),
        "trainer.limit_val_batches": 0,
        "checkpoint.every_n_train_steps": 4,
        "samples.every": 0,
        "model": "TransformerModule",
        "model.trunk.dim": 16,
        "model.trunk.num_layers": 2,
        "model.trunk.hidden_dim": 24,
        "model.trunk.max_length": 64,
        "model.compile": "false",
        "model.schedule.warmup_steps": 3,
        "data": "TokenDataModule",
        "data.shards": f"[{shards}]",
        "data.stream.length": 48,
        "data.stream.rows": 4,
        **{name.replace("__", "."): value for name, value in options.items()},
    }
    return ["fit", "--seed_everything=7", *(f"--{name}={value}" for name, value in settings.items())]


def start_training(arguments: list[str]) -> subprocess.Popen[str]:
    """`python train.py ...` in a process of its own."""
    command = [sys.executable, "train.py", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **pipes)


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL a run with all its workers and ranks."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def wait_for(process: subprocess.Popen[str], flag: Path, seconds: float = 600) -> None:
    """Until a running process has touched a file. Raises AssertionError where it ends before."""
    deadline = time.monotonic() + seconds
    while not flag.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    if not flag.exists() or process.poll() is not None:
        raise AssertionError(finish(process, 1))


def finish(process: subprocess.Popen[str], seconds: float = 600) -> str:
    """Wait for a process; its output. Kills it past its time."""
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
    return output


def weights_after(*runs: tuple[list[str], Path]) -> list[dict[str, Tensor]]:
    """Train each (arguments, root) in a process of its own; the weights of the bundles they leave."""
    for arguments, _ in runs:
        process = start_training(arguments)
        output = finish(process)
        assert process.returncode == 0, output
    return [load_file(root / "model" / "model.safetensors") for _, root in runs]


def logged(root: Path, name: str, version: int = 0) -> dict[int, str]:
    """step -> value of a metric, as its digits stand in metrics.csv."""
    with (root / "logs" / f"version_{version}" / "metrics.csv").open() as file:
        return {int(row["step"]): row[name] for row in csv.DictReader(file) if row[name]}
