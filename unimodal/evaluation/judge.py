"""The judge of drawn pictures: a small classifier of colour and shape, trained on real easy-VQA pictures only."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from data_pipelines.documents import ImageSegment
from data_pipelines.failures import FailureLog
from data_pipelines.images import to_tensor
from data_pipelines.sources.easy_vqa import COLOURS, SHAPES
from data_pipelines.sources.registry import open_source
from unimodal.evaluation.degrade import degrade
from unimodal.evaluation.judge_file import read_network, save_network

# Shapes: B images, S = 64 image side; images lie in [-1, 1]. Labels: (B, 2) int64, colour and shape.

IMAGE_SIZE = 64
BATCH_SIZE = 64
STEPS = 350
PEAK_LEARNING_RATE = 4e-3
JUDGE_FILE = "judge.safetensors"
JUDGE_VERSION = 1
"""Raised when network or recipe change, so that a cached judge of the old kind is trained anew."""

log = logging.getLogger(__name__)

Verdict = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class JudgeShape:
    """Filters of the first convolution, and how many convolutions there are."""

    width: int = 16
    layers: int = 5

    def __post_init__(self) -> None:
        if self.width < 1 or self.layers < 5:
            raise ValueError(f"a judge has filters and at least five convolutions, got {self}")


class JudgeNetwork(nn.Module):
    """Convolutions, then the strongest response of each filter anywhere in the picture."""

    def __init__(self, shape: JudgeShape | None = None) -> None:
        super().__init__()
        shape = shape or JudgeShape()
        width = shape.width
        plan = [(3, width, 5, 2), (width, 2 * width, 3, 2), (2 * width, 2 * width, 3, 1), (2 * width, 4 * width, 3, 2)]
        plan += [(4 * width, 4 * width, 3, 1)] * (shape.layers - 4)
        layers: list[nn.Module] = []
        for inside, outside, size, stride in plan:
            convolution = nn.Conv2d(inside, outside, size, stride, padding=size // 2, bias=False)
            layers += [convolution, nn.BatchNorm2d(outside), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(4 * width, len(COLOURS) + len(SHAPES))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, S, S) -> colour logits (B, 8), shape logits (B, 3)."""
        logits = self.head(self.features(images).amax(dim=(2, 3)))
        return logits[:, : len(COLOURS)], logits[:, len(COLOURS) :]


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A trained classifier that has never seen a generated picture."""

    network: JudgeNetwork
    seed: int
    data_sha256: str
    """Fingerprint of the training split."""
    shape: JudgeShape = field(default_factory=JudgeShape)

    @torch.inference_mode()
    def probabilities(self, pictures: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """Pictures of any size -> how likely each colour (B, 8) and each shape (B, 3) is."""
        self.network.eval()
        batches = torch.stack([to_tensor(_resized(picture)) for picture in pictures]).float().split(256)
        colours, shapes = zip(*(self.network(batch) for batch in batches), strict=True)
        return torch.cat(colours).softmax(-1), torch.cat(shapes).softmax(-1)

    @torch.inference_mode()
    def predict(self, images: Tensor) -> list[Verdict]:
        """(B, 3, 64, 64) in [-1, 1] -> (colour, shape) of each."""
        if images.ndim != 4 or images.shape[1:] != (3, IMAGE_SIZE, IMAGE_SIZE):
            raise ValueError(
                f"the judge looks at (B, 3, {IMAGE_SIZE}, {IMAGE_SIZE}) pictures, got {tuple(images.shape)}"
            )
        self.network.eval()
        verdicts: list[Verdict] = []
        for batch in images.float().split(256):
            colours, shapes = self.network(batch)
            pairs = zip(colours.argmax(1).tolist(), shapes.argmax(1).tolist(), strict=True)
            verdicts += [(COLOURS[colour], SHAPES[shape]) for colour, shape in pairs]
        return verdicts

    def accuracy_on(self, split: str) -> float:
        """Share of real pictures of an easy-VQA split, with settled labels, whose colour and shape are both right."""
        images, labels, _ = settled_pictures(split)
        truth = [(COLOURS[colour], SHAPES[shape]) for colour, shape in labels.tolist()]
        verdicts = self.predict(to_unit(images))
        return sum(verdict == expected for verdict, expected in zip(verdicts, truth, strict=True)) / len(truth)

    def save(self, folder: Path) -> Path:
        """Write `judge.safetensors` with its seed and data inside; returns its path."""
        metadata = {"version": JUDGE_VERSION, "seed": self.seed, "data_sha256": self.data_sha256, **vars(self.shape)}
        return save_network(folder / JUDGE_FILE, self.network, "judge", metadata)

    @classmethod
    def load(cls, folder: Path) -> Judge:
        """The inverse of `save`. Raises ValueError when the file is not a judge of this version."""
        state, metadata = read_network(folder / JUDGE_FILE, "judge", JUDGE_VERSION)
        shape = JudgeShape(**{name: metadata[name] for name in vars(JudgeShape()) if name in metadata})
        network = JudgeNetwork(shape)
        network.load_state_dict(state)
        return cls(network=network, seed=metadata["seed"], data_sha256=metadata["data_sha256"], shape=shape)


def verdicts_on(judge: Judge, pictures: Sequence[Image.Image | None]) -> list[Verdict | None]:
    """The judge's word on each picture of any size; None where there is none to judge."""
    drawn = [picture for picture in pictures if picture is not None]
    if not drawn:
        return [None] * len(pictures)
    verdicts = iter(judge.predict(torch.stack([to_tensor(_resized(picture)) for picture in drawn])))
    return [None if picture is None else next(verdicts) for picture in pictures]


def _resized(picture: Image.Image) -> Image.Image:
    return picture.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)


def judge_recipe(judge: Judge | None) -> dict[str, Any] | None:
    """The judge as a results file tells of it."""
    if judge is None:
        return None
    return {"trained_on": "easy_vqa train, real pictures only", "seed": judge.seed, "data_sha256": judge.data_sha256}


def settled_pictures(split: str) -> tuple[Tensor, Tensor, str]:
    """Every easy-VQA picture whose questions settle colour and shape.

    Returns uint8 (n, 3, 64, 64), labels (n, 2) as indices into COLOURS and SHAPES, and the split's fingerprint.
    """
    source = open_source("easy_vqa", path=None, split=split, failures=FailureLog(), dialogues=0)
    pictures, labels = [], []
    for document in source.documents():
        if document.layout != "sample" or not {"colour", "shape"} <= document.meta.keys():
            continue
        image = next(segment for segment in document.segments if isinstance(segment, ImageSegment))
        pictures.append(torch.from_numpy(np.array(image.open())).permute(2, 0, 1))
        labels.append((COLOURS.index(document.meta["colour"]), SHAPES.index(document.meta["shape"])))
    return torch.stack(pictures), torch.tensor(labels), source.fingerprint()


def to_unit(images: Tensor) -> Tensor:
    """uint8 -> float in [-1, 1]."""
    return images.float() / 127.5 - 1


def train_judge(
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    *,
    steps: int = STEPS,
    shape: JudgeShape | None = None,
) -> Judge:
    """Train on the training split for `steps` batches of 64; `progress(n)` is called with the steps just done.

    Pictures are mirrored half of the time and degraded as decoding degrades them. The caller's random state is kept.
    """
    images, labels, fingerprint = settled_pictures("train")
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = JudgeNetwork(shape).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, max(steps, 2), pct_start=0.15)
    network.train()
    for _ in range(steps):
        chosen = torch.randint(len(images), (BATCH_SIZE,), generator=generator)
        batch = augment_pixels(to_unit(images[chosen]), generator).contiguous(memory_format=torch.channels_last)
        colours, shapes = network(batch)
        loss = functional.cross_entropy(colours, labels[chosen, 0]) + functional.cross_entropy(
            shapes, labels[chosen, 1]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(1)
    return Judge(network=network.eval(), seed=seed, data_sha256=fingerprint, shape=shape or JudgeShape())


def augment_pixels(images: Tensor, generator: torch.Generator) -> Tensor:
    """(B, 3, S, S) -> mirrored half of the time (labels stay true), then degraded."""
    mirrored = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return degrade(torch.where(mirrored, images.flip(3), images), generator)


def cached_judge(
    folder: Path, seed: int = 0, progress: Callable[[int], None] | None = None, shape: JudgeShape | None = None
) -> Judge:
    """The judge saved in `folder` if it has this version, seed, shape and data; else a new one, saved there."""
    shape = shape or JudgeShape()
    try:
        judge = Judge.load(folder)
        source = open_source("easy_vqa", path=None, split="train", failures=FailureLog())
        if (judge.seed, judge.shape) == (seed, shape) and judge.data_sha256 == source.fingerprint():
            return judge
    except ValueError as error:
        log.info("training a new judge: %s", error)
    judge = train_judge(seed, progress, shape=shape)
    judge.save(folder)
    return judge
