"""Freed memory stays with a training process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from unimodal.training import heap
from unimodal.training.heap import keep_freed_memory

FAULTS = """
import resource
import torch
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(100 * 2**20 // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(16):
    faults()  # the heap finds its shape
print(sum(faults() for _ in range(5)))
"""
KEEP = "from unimodal.training.heap import keep_freed_memory; print(keep_freed_memory())"
LEAVE = "import unimodal.training.cli; print(False)"
TRAIN = "from unimodal.training.cli import run; run(['fit', '--max_stepps', '1'])"
"""A run that a mistake ends early."""


def _page_faults(first: str) -> tuple[bool, int]:
    """Whether memory is kept by what a process does first, as far as it says so, and the page faults of five large
    tensors after that."""
    script = f"try:\n    {first}\nexcept SystemExit:\n    pass\n{FAULTS}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    *kept, faults = done.stdout.split()
    return kept == ["True"], int(faults)


@pytest.mark.slow
def test_a_freed_block_is_used_again_without_a_page_fault() -> None:
    (kept, few), (_, many) = _page_faults(KEEP), _page_faults(LEAVE)
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


@pytest.mark.slow
def test_training_keeps_freed_memory() -> None:
    (kept, few), (_, trained) = _page_faults(KEEP), _page_faults(TRAIN)
    assert trained < 10 * few + 1000 if kept else trained > few / 2
