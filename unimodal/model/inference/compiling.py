"""torch.compile where it can work, and plain execution with a word of warning where it cannot."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from sysconfig import get_paths
from typing import Any

import torch
from torch import Tensor

from unimodal.model.context import LayerContext
from unimodal.model.model import UnifiedModel

log = logging.getLogger(__name__)

Block = Callable[..., Any]
"""A layer of the trunk: (B, T, D) -> (B, T, D)."""


def tag_cache() -> None:
    """Keep what is compiled for different vector units of a CPU apart in torch's cache on disk.

    torch tells them apart by the machine alone: code for AVX-512, found by a process that may use AVX2 only
    (`ATEN_CPU_CAPABILITY=avx2`, or a cache that machines share), gave losses that are no numbers (docs/log.md,
    2026-11-27).
    """
    tag = f"cpu {torch.backends.cpu.get_cpu_capability()}"
    if tag not in torch.compiler.config.cache_key_tag:
        torch.compiler.config.cache_key_tag += tag  # pyright: ignore[reportAttributeAccessIssue]


def compile_blocks(model: UnifiedModel) -> None:
    """Compile the trunk's blocks in place for training; about twice as fast on CPUs, which need a C++ compiler.

    Blocks have one architecture, so one graph serves for all of them. With a cache they run uncompiled: every length of
    it would make a graph of its own, until torch.compile gives up.
    """
    if not (torch.cuda.is_available() or can_build_for_cpu()):
        log.warning("no working C++ compiler with Python headers: training runs uncompiled, about half as fast")
        return
    tag_cache()
    torch._dynamo.config.optimize_ddp = False  # it would cut blocks, which are units of overlap, at sizes of buckets
    for block in model.blocks:
        block.compile()
        compiled = block._compiled_call_impl
        assert compiled is not None
        block._compiled_call_impl = partial(_without_cache, compiled, block._call_impl)  # pyright: ignore[reportAttributeAccessIssue]


def _without_cache(compiled: Block, plain: Block, x: Tensor, context: LayerContext) -> Tensor:
    return (compiled if context.cache is None else plain)(x, context)


@contextmanager
def uncompiled(model: UnifiedModel) -> Iterator[None]:
    """Blocks that `compile_blocks` compiled run as they are written, hooks and all."""
    compiled = [(block, block._compiled_call_impl) for block in model.blocks]
    for block, _ in compiled:
        block._compiled_call_impl = None
    try:
        yield
    finally:
        for block, call in compiled:
            block._compiled_call_impl = call  # pyright: ignore[reportAttributeAccessIssue]


def sizes_vary(tensors: Iterable[Tensor]) -> None:
    """Say that the first sizes of these tensors differ from call to call.

    Otherwise torch.compile makes a graph for the first sizes and throws it away at the second call.
    """
    for tensor in tensors:
        torch._dynamo.maybe_mark_dynamic(tensor, 0)


def can_build_for_cpu() -> bool:
    """Whether there is what torch.compile needs on a CPU: a C++ compiler and Python's headers."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # takes a second to import

    try:
        get_cpp_compiler()
    except Exception:  # the reason does not matter: without it there is no compiling
        return False
    return sys.platform != "win32" and (Path(get_paths()["include"]) / "Python.h").is_file()
