"""Decoding steps on a GPU, recorded as a whole and replayed: one launch instead of some three hundred.

A step is tensors only, so while the rows of a batch stay the same it is the same kernels on the same memory. The first
steps after rows have changed run as they are, which compiles what is to be compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, Protocol

import torch
from torch import Tensor

from unimodal.generation.modality import ModalityState

MOVING = ("tokens", "step_count", "num_sampled", "position", "has_contexts", "drafts")
"""Tensors of a batch that every step makes anew, beside its modality state."""

WARM_UP = 8
"""Steps before a recording: it costs about as much as one, and answers may be shorter."""


class Graph(Protocol):
    """Recorded work."""

    def replay(self) -> None:
        """Do it again, on the same memory."""
        ...


class Steps:
    """Steps as they come."""

    def run(self, batch: Any) -> None:
        """One step of a `Batch`."""
        batch.advance()

    def forget(self) -> None:
        """The rows of the batch have changed."""


class RecordedSteps(Steps):
    """`record` takes work without arguments and gives it recorded, without having done it."""

    def __init__(self, record: Callable[[Callable[[], None]], Graph] | None = None) -> None:
        self.record = record or _record
        self.graph: Graph | None = None
        self.count = 0

    def forget(self) -> None:
        """See `Steps`."""
        self.graph, self.count = None, 0

    def run(self, batch: Any) -> None:
        """See `Steps`."""
        if self.graph is None:
            self.count += 1
            if self.count <= WARM_UP or batch.structured.active:
                batch.advance()
                return
            self.graph = self.record(_on_fixed_memory(batch))
        self.graph.replay()


def _on_fixed_memory(batch: Any) -> Callable[[], None]:
    """A step that leaves what it makes where it found what it read."""
    memory = {name: tensor.clone() for name, tensor in _moving(batch).items()}
    _place(batch, memory)

    def step() -> None:
        batch.advance()
        for name, tensor in _moving(batch).items():
            memory[name].copy_(tensor)
        _place(batch, memory)

    return step


def _moving(batch: Any) -> dict[str, Tensor]:
    state = {f"state.{item.name}": getattr(batch.state, item.name) for item in fields(ModalityState)}
    return state | {name: getattr(batch, name) for name in MOVING}


def _place(batch: Any, memory: dict[str, Tensor]) -> None:
    batch.state = ModalityState(**{item.name: memory[f"state.{item.name}"] for item in fields(ModalityState)})
    for name in MOVING:
        setattr(batch, name, memory[name])


def _record(work: Callable[[], None]) -> Graph:
    """A CUDA graph with memory of its own, which goes when it does."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        work()
    return graph
