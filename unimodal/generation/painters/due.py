"""Images that are due: which answers of a batch wait for one, and their contexts in a cache to draw in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unimodal.generation.batch import Batch
from unimodal.generation.context import guidance_contexts
from unimodal.generation.painters.base import CachedContexts, DueContexts, ImageDue, Painted
from unimodal.generation.reading import read
from unimodal.generation.rows import RowStatus
from unimodal.generation.stochastic_flow import FlowStep

PAINT_AT_ONCE = 16
"""Images that are drawn although other answers still move."""

PATIENCE = 128
"""Steps of other answers that an image waits for at most: in a queue that never ends, something always moves."""


class DueImages:
    """Draws the images that a batch waits for. An answer's noise is drawn from its own seed, image after image."""

    def __init__(self, batch: Batch, enough: int) -> None:
        """enough: images that are drawn although other answers still move."""
        self.batch, self.enough, self.waited = batch, enough, 0
        self.noise: dict[int, torch.Generator] = {}
        self.pictures: dict[int, list[Painted]] = {}

    def paint(self, statuses: Sequence[RowStatus], *, more: bool) -> bool:
        """Draw what is due and let the answers resume, or park them; whether the batch has changed.

        Few images wait for more of them as long as another answer moves or `more` requests can join: a solver's step
        costs little more for many.
        """
        batch, painter = self.batch, self.batch.painter
        if painter is None:
            return False
        waiting = [number for number, status in zip(batch.numbers, statuses, strict=True) if status.waits]
        due = [self._due(number) for number in waiting if batch.painted(number)]
        moving = any(not (status.done or status.waits) for status in statuses)
        self.waited = self.waited + 1 if due else 0
        if not due or (len(due) < self.enough and self.waited <= PATIENCE and (moving or more)):
            return batch.park({one.number for one in due})
        self.waited, painted = 0, painter.paint(due, self.contexts)
        for one, image in zip(due, painted, strict=True):
            self.pictures.setdefault(one.number, []).append(image)
        batch.insert({one.number: image for one, image in zip(due, painted, strict=True)})
        return True

    def forget(self, gone: set[int]) -> None:
        """Answers that have left need neither noise nor images."""
        for number in gone:
            self.noise.pop(number, None)
            self.pictures.pop(number, None)

    def drawn(self, number: int) -> tuple[Tensor, ...]:
        """All images (3, H, W) that an answer has so far."""
        return tuple(each.pixels for each in self.pictures.get(number, ()))

    def steps(self, number: int) -> tuple[tuple[FlowStep, ...], ...]:
        """Of all these images, the steps that were drawn with noise."""
        return tuple(each.steps for each in self.pictures.get(number, ()))

    def _due(self, number: int) -> ImageDue:
        request = self.batch.requests[number]
        if number not in self.noise:
            self.noise[number] = torch.Generator().manual_seed(request.seed)
        return ImageDue(number, request, self.noise[number])

    def contexts(self, due: Sequence[ImageDue], free: int) -> DueContexts:
        """See `DueContexts`; every row has `free` slots after its context."""
        batch = self.batch
        rows = [batch.main_row(one.number) for one in due]
        at = torch.tensor([batch.numbers.index(one.number) for one in due], device=batch.device)
        positions = batch.position[at].tolist()
        lengths = [position + batch.rows[row].offset for position, row in zip(positions, rows, strict=True)]
        compared = [guidance_contexts(batch.context(o.number), batch.space, o.request.config.guidance) for o in due]
        guided = [index for index, contexts in enumerate(compared) if contexts]
        by_image = [index for index, contexts in enumerate(compared) if len(contexts) > 1]
        others = [compared[index][0] for index in guided] + [compared[index][1] for index in by_image]
        pieces = [context.piece() for context in others]
        cache = batch.cache.gather(rows, max([*lengths, *map(len, pieces)]) + free)
        if pieces:
            cache.grow(len(rows) + len(pieces))
            read(batch.model, cache.view(len(rows), len(rows) + len(pieces)), pieces, batch.space.specials.pad)
        starts = batch.integers([*lengths, *map(len, others)])
        at_positions = batch.integers([*positions, *(context.position for context in others)])
        cached = CachedContexts(cache, starts, at_positions)
        return DueContexts(cached, batch.integers(guided), batch.integers(by_image))
