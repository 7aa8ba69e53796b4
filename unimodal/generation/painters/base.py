"""The contract of a painter: it draws the images of answers that are not sampled token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from unimodal.generation.context import ContextImage
from unimodal.generation.requests import Request
from unimodal.generation.stochastic_flow import FlowStep
from unimodal.model.cache import KVCache

# Shapes: B contexts, G of them guided, I of them guided by their images too, H and W sides of an image.


class ImageDue(NamedTuple):
    """An answer that waits for an image: its number, its request, and the generator of its noise."""

    number: int
    request: Request
    noise: torch.Generator

    @property
    def beginning(self) -> torch.Generator:
        """The generator of the noise that its image starts from: its group's where there is one."""
        window = self.request.window
        return self.noise if window is None else torch.Generator().manual_seed(window.seed)


class CachedContexts(NamedTuple):
    """Contexts in the rows of a cache; `lengths` and `positions` (one a row) say where an image behind them starts."""

    cache: KVCache
    lengths: Tensor
    positions: Tensor

    def part(self, rows: Sequence[int], free: int) -> CachedContexts:
        """Copies of some of them, with `free` slots behind the longest."""
        lengths = self.lengths[list(rows)]
        cache = self.cache.gather(list(rows), int(lengths.max()) + free)
        return CachedContexts(cache, lengths, self.positions[list(rows)])


class DueContexts(NamedTuple):
    """The contexts of images that are due: B whole ones, then G without words and images, then I without words.

    `guided` (G,) and `by_image` (I,) are indices of the whole contexts.
    """

    contexts: CachedContexts
    guided: Tensor
    by_image: Tensor


class Painted(NamedTuple):
    """An image (3, H, W) in [-1, 1], the ids between its boi and eoi, and how it stands in the context afterwards.

    `steps` are those that were drawn with noise.
    """

    pixels: Tensor
    body: list[int]
    image: ContextImage
    steps: tuple[FlowStep, ...] = ()


class Painter(Protocol):
    """Draws whole images."""

    def slots(self, request: Request) -> int:
        """Cache slots that an image takes while it is drawn, and then as it is read; 0 where the request draws none."""
        ...

    def check(self, request: Request) -> None:
        """Raise ValueError for a request that cannot be drawn."""
        ...

    def paint(
        self, due: Sequence[ImageDue], contexts: Callable[[Sequence[ImageDue], int], DueContexts]
    ) -> list[Painted]:
        """An image for each; `contexts` lays the contexts of some of them into a cache with so many free slots."""
        ...
