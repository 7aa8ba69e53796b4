"""Evaluation shared by ranks: each answers its part of the prompts, and every rank gets all answers.

An answer depends on its request and seed alone, so ranks together answer what one would, and the scores are the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from unimodal.evaluation.contract import AnyToAnyModel
from unimodal.generation.pipeline import Pipeline
from unimodal.generation.prompts import Answer, Prompt
from unimodal.generation.scheduler import ROWS

T = TypeVar("T")


def rank_and_world() -> tuple[int, int]:
    """The number of this process and of all, as torchrun sets them."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def rank_device(name: str | None) -> str | None:
    """The device of this rank: its own GPU where there are several and none is named."""
    if name is not None or rank_and_world()[1] == 1 or not torch.cuda.is_available():
        return name
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"


@contextmanager
def process_group() -> Iterator[None]:
    """The ranks that torchrun has started, if it has."""
    if rank_and_world()[1] == 1:
        yield
        return
    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def shared(pipeline: Pipeline) -> AnyToAnyModel:
    """A pipeline whose answers and scores are made by all ranks."""
    return cast(AnyToAnyModel, RankedPipeline(pipeline))


class RankedPipeline:
    """A pipeline whose answers and scores are made by all ranks of the process group; all else is the pipeline's."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipeline, name)

    def generate(
        self,
        prompts: Sequence[Prompt],
        *choices: Any,
        seed: int = 0,
        batch_size: int = ROWS,
        progress: Callable[[int], None] = lambda done: None,
        **settings: Any,
    ) -> list[Answer]:
        """As `Pipeline.generate`, without streams and thinking."""
        config, (_, world) = self.pipeline.decode_config(*choices, **settings), rank_and_world()
        numbers = share(len(prompts))
        requests = self.pipeline.requests([prompts[number] for number in numbers], config)
        requests = [replace(each, seed=seed + number) for each, number in zip(requests, numbers, strict=True)]
        return merged(self.pipeline.answers(requests, batch_size, lambda done: progress(done * world)))

    def log_likelihoods(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float]:
        """As `Pipeline.log_likelihoods`."""
        numbers = share(len(prompts))
        return merged(
            self.pipeline.log_likelihoods([prompts[n] for n in numbers], [answers[n] for n in numbers])
            if numbers
            else list[float]()
        )


def share(count: int) -> Sequence[int]:
    """The numbers of so many items that are this rank's."""
    rank, world = rank_and_world()
    return range(rank, count, world)


def merged(part: list[T]) -> list[T]:
    """What the ranks made of their shares, in the order of the items."""
    parts: list[Any] = [None] * rank_and_world()[1]
    dist.all_gather_object(parts, part)
    return [each[place] for place in range(max(map(len, parts))) for each in parts if place < len(each)]
