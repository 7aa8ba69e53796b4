"""What the C library does with freed memory while a model trains on CPUs."""

from __future__ import annotations

import ctypes
import logging
import platform

log = logging.getLogger(__name__)

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Names of mallopt's parameters (malloc.h of glibc)."""

LARGEST = (2**30, 2**25)
"""Bytes: blocks up to this size come from the heap; older glibc takes no more than the second."""

KEPT = 2**30
"""Bytes of freed memory that stay at the end of the heap."""


def keep_freed_memory() -> bool:
    """Keep large freed blocks for the next step instead of handing them to the kernel; returns whether glibc does.

    glibc returns them at once, and the next step faults every page in anew: a tenth of the demo's training time
    (docs/log.md, 2026-11-24). Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    kept = any(mallopt(MMAP_THRESHOLD, size) for size in LARGEST)
    if kept:  # not otherwise: any setting at all ends glibc's own adaptation to the blocks it sees
        mallopt(TRIM_THRESHOLD, KEPT)
    if not kept:
        log.debug("glibc did not take mallopt's settings: training is a little slower")
    return kept
