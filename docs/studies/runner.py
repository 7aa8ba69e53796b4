"""What studies share: programs side by side, each with its share of the cores, and a page with a table in it."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
TABLE = "<!-- table -->"
UNIMODAL = ("-c", "from unimodal.cli import main; main()")


@dataclass(frozen=True, kw_only=True)
class Programs:
    """Where a study lies, and how many programs run side by side."""

    out: Path
    at_once: int

    def run(self, *command: str) -> float:
        """A command with its share of the cores; returns its seconds. Raises SystemExit where it fails."""
        print(f"$ {' '.join(command)}\n", end="", flush=True)  # noqa: T201
        threads = str(max(1, (os.cpu_count() or 1) // self.at_once))
        started = time.perf_counter()
        with (self.out / "log.txt").open("a") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": threads}
            done = subprocess.run(
                [sys.executable, *command], cwd=ROOT, env=environment, stdout=log, stderr=log, check=False
            )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed: see {self.out / 'log.txt'}")
        return time.perf_counter() - started

    def unimodal(self, *arguments: str) -> float:
        """`unimodal ...`."""
        return self.run(*UNIMODAL, *arguments)

    def side_by_side(self, commands: Iterable[tuple[str, ...]]) -> None:
        """All of them, `at_once` at a time."""
        self.each(lambda *command: self.run(*command), commands)

    def each(self, act: Callable[..., Any], jobs: Iterable[tuple[Any, ...]]) -> None:
        """Act on all jobs, `at_once` at a time."""
        with ThreadPoolExecutor(self.at_once) as pool:
            list(pool.map(lambda job: act(*job), list(jobs)))


def fit(config: str, root: Path) -> tuple[str, ...]:
    """A training, to be run by `Programs`."""
    return ("train.py", "fit", "--config", config, "--trainer.default_root_dir", str(root))


def scored(task: str, *options: str) -> tuple[str, ...]:
    """A command that scores a model on easy-VQA's official test split, without the names of model and results."""
    return (*UNIMODAL, "evaluate", "--task", task, "--source", "easy_vqa", "--split", "test", *options)


def fill_in(page: Path, table: str, mark: str = TABLE) -> None:
    """The table between the marks of a page."""
    before, _, after = page.read_text(encoding="utf-8").split(mark)
    page.write_text(mark.join([before, f"\n{table}\n", after]), encoding="utf-8")


def mean_and_each(values: Sequence[float], digits: int) -> str:
    """`0.98 (0.97, 0.99)`, or the value where there is one."""
    each = ", ".join(f"{value:,.{digits}f}" for value in values)
    return each if len(values) == 1 else f"{statistics.mean(values):,.{digits}f} ({each})"
