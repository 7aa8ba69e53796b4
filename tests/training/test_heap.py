"""Freed memory stays with a training process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from unimodal.training import cli, heap
from unimodal.training.heap import keep_freed_memory

FAULTS = """
import resource, sys
import torch
from unimodal.training.heap import keep_freed_memory
kept = sys.argv[1] == "keep" and keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(100 * 2**20 // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(16):
    faults()  # the heap finds its shape
print(int(kept), sum(faults() for _ in range(5)))
"""


def _page_faults(how: str) -> tuple[bool, int]:
    """Whether memory is kept, and the page faults of five large tensors."""
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
    kept, faults = map(int, done.stdout.split())
    return bool(kept), faults


def test_a_freed_block_is_used_again_without_a_page_fault() -> None:
    (kept, few), (_, many) = _page_faults("keep"), _page_faults("leave")
    assert 10 * few < many if kept else few > many / 2


class _Glibc:
    """mallopt of a glibc that takes thresholds up to `most`; what it was given stays in `set`."""

    def __init__(self, most: int) -> None:
        self.most, self.set = most, {}

    def mallopt(self, name: int, value: int) -> int:
        if name == heap.MMAP_THRESHOLD and value > self.most:
            return 0
        self.set[name] = value
        return 1


@pytest.mark.parametrize(("most", "kept"), [(2**40, 2**30), (2**25, 2**25), (0, None)])
def test_older_glibc_keeps_what_it_can_or_is_left_as_it_was(
    most: int, kept: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    libc = _Glibc(most)
    monkeypatch.setattr(heap.platform, "libc_ver", lambda: ("glibc", "2.31"))
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: libc)
    assert keep_freed_memory() is (kept is not None)
    assert libc.set == ({heap.MMAP_THRESHOLD: kept, heap.TRIM_THRESHOLD: heap.KEPT} if kept else {})


def test_training_keeps_freed_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: asked.append(True))
    monkeypatch.setattr(cli, "TrainingCLI", lambda **settings: None)
    cli.run(["fit"])
    assert asked
