"""A judge of drawings for any captioned source: a network for pictures and one for captions that find each other.

It is trained on the real pictures of the training split alone, contrastively (CLIP, arXiv 2103.00020, section 2.3), and
has never been given a drawing. What it is worth is said beside its scores: the same of real held-out pictures.
"""

from __future__ import annotations

import logging
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from data_pipelines.documents import DamagedSample, Document, ImageSegment
from unimodal.evaluation.contract import DocumentSource
from unimodal.evaluation.degrade import degrade
from unimodal.evaluation.judge import JudgeNetwork, JudgeShape, to_unit
from unimodal.evaluation.judge_file import read_network, save_network
from unimodal.evaluation.samples import captions_of, picture_of

# Shapes: B pictures or captions, S = 64 image side, E = 128 embedding; images lie in [-1, 1].

SIDE = 64
EMBEDDING = 128
BUCKETS = 8192
"""Of the hash of words and pairs of words."""
ENCODER_STEPS = 700
ENCODER_BATCH = 128
ENCODER_RATE = 3e-3
FEWEST, MANY = 200, 20_000
"""Captioned pictures that it takes to train one, and that it takes at most."""
DUAL_ENCODER_FILE = "dual_encoder.safetensors"
DUAL_ENCODER_VERSION = 1
log = logging.getLogger(__name__)

WORD = re.compile(r"\w+")


class DualNetwork(nn.Module):
    """Both encoders and the scale of their products."""

    def __init__(self) -> None:
        super().__init__()
        shape = JudgeShape(width=24, layers=6)
        self.pixels = JudgeNetwork(shape).features
        self.of_pixels = nn.Linear(8 * shape.width, EMBEDDING)
        self.words = nn.EmbeddingBag(BUCKETS, EMBEDDING, mode="mean")
        self.of_words = nn.Sequential(
            nn.Linear(EMBEDDING, 2 * EMBEDDING), nn.GELU(), nn.Linear(2 * EMBEDDING, EMBEDDING)
        )
        self.log_scale = nn.Parameter(torch.tensor(2.0))

    def pictures(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> unit vectors (B, E)."""
        found = self.pixels(images)
        return F.normalize(self.of_pixels(torch.cat([found.amax((2, 3)), found.mean((2, 3))], -1)), dim=-1)

    def captions(self, texts: Sequence[str]) -> Tensor:
        """B captions -> unit vectors (B, E)."""
        ids = [word_ids(text) for text in texts]
        starts = torch.tensor([0, *(len(each) for each in ids[:-1])]).cumsum(0)
        flat = torch.tensor([number for each in ids for number in each], dtype=torch.int64)
        return F.normalize(self.of_words(self.words(flat, starts)), dim=-1)


def word_ids(text: str) -> list[int]:
    """Buckets of the words of a caption and of neighbouring pairs; at least one."""
    words = WORD.findall(text.lower()) or [text]
    pairs = [f"{first} {second}" for first, second in pairwise(words)]
    return [zlib.crc32(each.encode()) % BUCKETS for each in (*words, *pairs)]


@dataclass(frozen=True, kw_only=True)
class DualEncoder:
    """A trained pair of encoders."""

    network: DualNetwork
    seed: int
    data_sha256: str
    """Fingerprint of the split that it was trained on."""

    @torch.inference_mode()
    def likeness(self, pictures: Sequence[Image.Image], captions: Sequence[str]) -> Tensor:
        """Cosines (pictures, captions)."""
        self.network.eval()
        images = to_unit(torch.stack([as_square(picture) for picture in pictures]))
        found = torch.cat([self.network.pictures(batch) for batch in images.split(256)])
        return found @ self.network.captions(captions).T

    def save(self, folder: Path) -> None:
        """Write `dual_encoder.safetensors`."""
        metadata = {"version": DUAL_ENCODER_VERSION, "seed": self.seed, "data_sha256": self.data_sha256}
        save_network(folder / DUAL_ENCODER_FILE, self.network, "dual_encoder", metadata)

    @classmethod
    def load(cls, folder: Path) -> DualEncoder:
        """The inverse of `save`. Raises ValueError where there is none of this version."""
        state, metadata = read_network(folder / DUAL_ENCODER_FILE, "dual_encoder", DUAL_ENCODER_VERSION)
        network = DualNetwork()
        network.load_state_dict(state)
        return cls(network=network.eval(), seed=metadata["seed"], data_sha256=metadata["data_sha256"])

    def recipe(self) -> dict[str, Any]:
        """As a results file tells of it."""
        trained = "a dual encoder, of the training split's real pictures and captions"
        return {"trained_on": trained, "seed": self.seed, "data_sha256": self.data_sha256}


def captioned(document: Document) -> tuple[ImageSegment, str] | None:
    """The picture of a sample and its first caption."""
    texts, image = captions_of(document), picture_of(document)
    return (image, texts[0]) if image is not None and texts else None


def as_square(picture: Image.Image) -> Tensor:
    """uint8 (3, S, S)."""
    small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)


def captioned_pictures(source: DocumentSource, limit: int = MANY) -> tuple[Tensor, list[str]]:
    """The first `limit` pictures with captions: uint8 (n, 3, S, S), captions. Those that cannot be read are counted in
    the source's `failures`, of which too many raise TooMuchDamage."""
    pictures, captions = list[Tensor](), list[str]()
    for document in source.documents():
        found = captioned(document)
        if found is None:
            continue
        try:
            pictures.append(as_square(found[0].open()))
        except DamagedSample as error:
            source.failures.revoke(document.key, str(error))
            continue
        captions.append(found[1])
        if len(captions) == limit:
            break
    return torch.stack(pictures) if pictures else torch.zeros(0, 3, SIDE, SIDE, dtype=torch.uint8), captions


def train_dual_encoder(
    source: DocumentSource,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    *,
    steps: int = ENCODER_STEPS,
) -> DualEncoder:
    """Train on a source for `steps` batches; `progress(n)` is called with the steps just done.

    Pictures are degraded as decoding degrades them, and not mirrored: captions may speak of left and right. Equal
    captions of a batch are all right. The caller's random state is kept. Raises ValueError for fewer than FEWEST
    pictures.
    """
    pictures, captions = captioned_pictures(source)
    if len(captions) < FEWEST:
        raise ValueError(f"a dual encoder takes {FEWEST} captioned pictures for training, there are {len(captions)}")
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = DualNetwork()
    optimizer = torch.optim.AdamW(network.parameters(), lr=ENCODER_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, ENCODER_RATE, max(steps, 2), pct_start=0.15)
    network.train()
    for _ in range(steps):
        chosen = torch.randint(len(captions), (min(ENCODER_BATCH, len(captions)),), generator=generator)
        texts = [captions[number] for number in chosen.tolist()]
        loss = contrastive(network, degrade(to_unit(pictures[chosen]), generator), texts)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(1)
    return DualEncoder(network=network.eval(), seed=seed, data_sha256=source.fingerprint())


def contrastive(network: DualNetwork, images: Tensor, texts: Sequence[str]) -> Tensor:
    """Cross-entropy of finding the captions of pictures and the pictures of captions, a mean of both."""
    logits = network.log_scale.exp() * network.pictures(images) @ network.captions(texts).T
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    names = torch.tensor([numbers[text] for text in texts])
    right = (names[:, None] == names).float()
    right = right / right.sum(1, keepdim=True)
    return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2


def cached_dual_encoder(
    folder: Path, source: DocumentSource, seed: int = 0, progress: Callable[[int], None] | None = None
) -> DualEncoder:
    """The one saved in `folder` if it has this version, seed and data; else a new one, saved there."""
    try:
        found = DualEncoder.load(folder)
        if (found.seed, found.data_sha256) == (seed, source.fingerprint()):
            return found
    except ValueError as error:
        log.info("training a new dual encoder: %s", error)
    made = train_dual_encoder(source, seed, progress)
    made.save(folder)
    return made
