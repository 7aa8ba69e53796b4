"""What the C library does with freed memory while a model trains on CPUs."""

from __future__ import annotations

import ctypes
import logging
import platform

log = logging.getLogger(__name__)

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Names of mallopt's parameters (malloc.h of glibc)."""

LARGEST = 2**30
"""Bytes: blocks up to this size come from the heap, and so much freed memory stays at its end."""


def keep_freed_memory() -> bool:
    """Keep large freed blocks for the next step instead of handing them to the kernel; returns whether glibc does.

    glibc returns them at once, and the next step faults every page in anew: a tenth of the demo's training time
    (docs/log.md, 2026-11-24). Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    kept = all(mallopt(name, LARGEST) for name in (TRIM_THRESHOLD, MMAP_THRESHOLD))
    if not kept:
        log.debug("glibc did not take mallopt's settings: training is a little slower")
    return kept
