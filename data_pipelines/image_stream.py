"""Endless batches of pictures whose order is a pure function of seed and step."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from data_pipelines.images import augment, to_image, to_tensor
from data_pipelines.stream import ENDLESS


class ImageStream(IterableDataset[Tensor]):
    """Batches (B, 3, S, S) in [-1, 1] drawn from (seed, step, rank); the position is one number.

    `flip` and `place` are the augmentations of `images.augment`; without `place` no picture leaves its bytes.
    """

    def __init__(
        self,
        images: Tensor,
        batch_size: int,
        flip: bool,
        seed: int,
        *,
        place: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__()
        self.images, self.batch_size, self.flip, self.place = images, batch_size, flip, place
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self._step = 0

    def state_dict(self) -> dict[str, Any]:
        """The position of the stream."""
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a saved position."""
        self._step = state["step"]

    def __len__(self) -> int:
        return ENDLESS

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            generator = torch.Generator().manual_seed(self.seed + (self._step * self.world_size + self.rank) * 7919)
            chosen = torch.randint(len(self.images), (self.batch_size,), generator=generator)
            images = self.images[chosen].float() / 127.5 - 1
            if self.flip:
                mirrored = torch.rand(self.batch_size, 1, 1, 1, generator=generator) < 0.5
                images = torch.where(mirrored, images.flip(-1), images)
            if self.place:
                images = torch.stack([self._placed(image, index) for index, image in enumerate(images)])
            self._step += 1
            yield images

    def _placed(self, image: Tensor, index: int) -> Tensor:
        random = Random(f"{self.seed}-{self._step}-{self.rank}-{index}")
        return to_tensor(augment(to_image(image), ("place",), random))
