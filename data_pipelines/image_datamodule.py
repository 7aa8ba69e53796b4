"""The Lightning data module of image tokenizers and autoencoders: pictures of a source as tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from data_pipelines.documents import DamagedSample, ImageSegment
from data_pipelines.failures import FailureLog
from data_pipelines.image_stream import ImageStream
from data_pipelines.images import ImagePolicy, to_tensor
from data_pipelines.sources.registry import open_source
from data_pipelines.spec import rank_of
from tokenizers_vq.identity import IDENTITY, check_identity, plain, tensor_hash


class ImageDataModule(L.LightningDataModule):
    """Distinct pictures of a source as tensors (B, 3, S, S) in [-1, 1]; a few are held out for validation.

    `flip` and `place` are those of `unimodal tokenize --augment`: a tokenizer is best trained on what it will encode.
    """

    def __init__(
        self,
        source: str = "easy_vqa",
        path: Path | None = None,
        split: str = "train",
        image_size: int = 64,
        batch_size: int = 64,
        flip: bool = True,
        place: bool = False,
        validation_images: int = 128,
        seed: int = 0,
        max_bad: float = 0.1,
        source_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.source_options = source_options or {}
        self.source, self.path, self.split = source, path, split
        self.policy = ImagePolicy(size=image_size)
        self.batch_size, self.flip, self.place, self.seed = batch_size, flip, place, seed
        self.validation_images, self.max_bad = validation_images, max_bad
        self.images, self.sha256 = torch.empty(0), ""

    def setup(self, stage: str) -> None:
        """Read all pictures once, as bytes."""
        del stage
        if len(self.images):
            return
        failures = FailureLog(limit=self.max_bad)
        source = open_source(self.source, path=self.path, split=self.split, failures=failures, **self.source_options)
        images = []
        for document in source.documents():
            for segment in () if document.layout == "dialogue" else document.segments:  # it repeats others' pictures
                if isinstance(segment, ImageSegment):
                    try:
                        images.append(_as_bytes(segment, self.policy))
                    except DamagedSample as error:
                        failures.revoke(document.key, str(error))
        failures.close()
        if len(images) < 2:
            raise ValueError(f"source {self.source!r} gave {len(images)} pictures; a tokenizer needs at least 2")
        self.images = torch.stack(images)
        self.sha256 = tensor_hash(self.images)

    def train_dataloader(self) -> StatefulDataLoader[Tensor]:
        """Endless shuffled batches with an exact position."""
        rank, world_size = rank_of(self.trainer)
        stream = ImageStream(
            self.images[self._held_out :],
            self.batch_size,
            self.flip,
            self.seed,
            place=self.place,
            rank=rank,
            world_size=world_size,
        )
        return StatefulDataLoader(stream, batch_size=None)

    def state_dict(self) -> dict[str, Any]:
        """What the position of the stream belongs to."""
        return {IDENTITY: self.identity()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises ValueError, with the first difference, for a position in other pictures."""
        check_identity(state_dict.get(IDENTITY), self.identity(), "the checkpoint's position in the data")

    def identity(self) -> dict[str, Any]:
        """What decides which picture comes when."""
        pictures = {"count": len(self.images), "sha256": self.sha256}
        chosen = {"batch_size": self.batch_size, "flip": self.flip, "place": self.place, "seed": self.seed}
        return plain({"pictures": pictures, **chosen, "validation_images": self.validation_images})

    def val_dataloader(self) -> DataLoader[Tensor]:
        """The held-out pictures."""
        held_out = self.images[: self._held_out].float() / 127.5 - 1
        batches = list(held_out.split(self.batch_size))
        return DataLoader(batches, batch_size=None)  # pyright: ignore[reportArgumentType]

    def test_dataloader(self) -> DataLoader[Tensor]:
        """All pictures of the split."""
        batches = list((self.images.float() / 127.5 - 1).split(self.batch_size))
        return DataLoader(batches, batch_size=None)  # pyright: ignore[reportArgumentType]

    predict_dataloader = test_dataloader

    @property
    def _held_out(self) -> int:
        return min(self.validation_images, len(self.images) // 10 + 1)


def _as_bytes(segment: ImageSegment, policy: ImagePolicy) -> Tensor:
    pixels = to_tensor(policy.apply(segment.open(), segment.role))
    return ((pixels + 1) * 127.5).round().to(torch.uint8)
