"""The data of a run of reinforcement learning: prompts, drawn in an order that a resumed run continues."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import lightning as L
from torch.utils.data import DataLoader, IterableDataset

from data_pipelines.documents import DamagedSample
from data_pipelines.failures import FailureLog
from data_pipelines.spec import DataSpec, Described
from tokenizers_vq.autoencoder import open_autoencoder
from tokenizers_vq.bundle_files import AUTOENCODER
from tokenizers_vq.identity import IDENTITY, check_identity, plain
from tokenizers_vq.media import LATENTS, PATCHES, MediaSpec
from tokenizers_vq.token_space import TokenSpace
from unimodal.model.checkpoint import read_config
from unimodal.training.rl.prompts.base import Prompts, RLPrompt


class DrawnPrompt(NamedTuple):
    """A prompt, and the number of the kind that it is of."""

    kind: int
    prompt: RLPrompt


HELD_OUT_ROUND = -1
"""The number of the round of held-out prompts: their answers have the same seeds at every validation."""


@dataclass
class PromptStream:
    """Prompts of several kinds without end: each kind in its share, each of its prompts once before any comes again."""

    kinds: Sequence[Sequence[RLPrompt]]
    weights: Sequence[float]
    seed: int
    counts: list[int]
    """How many of each kind were drawn: all that a resumed run needs."""
    failures: FailureLog = field(default_factory=FailureLog)
    """Prompts that could not be opened, a picture that is damaged say; all ranks draw, and skip, the same."""
    orders: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    """By kind and epoch."""

    @classmethod
    def of(cls, kinds: Sequence[Sequence[RLPrompt]], weights: Sequence[float], seed: int) -> PromptStream:
        """From the first prompt on."""
        return cls(kinds, weights, seed, [0] * len(kinds))

    def draw(self, count: int) -> list[DrawnPrompt]:
        """The next prompts. Raises TooMuchDamage where too many cannot be opened."""
        found: list[DrawnPrompt] = []
        while len(found) < count:
            kind = self._behind()
            prompts, number = self.kinds[kind], self.counts[kind]
            self.counts[kind] += 1
            place = self._order(kind, number // len(prompts))[number % len(prompts)]
            try:
                found.append(DrawnPrompt(kind, prompts[place]))
            except DamagedSample as error:
                self.failures.drop(f"prompt {place} of kind {kind}", str(error))
            else:
                self.failures.keep()
        return found

    def _order(self, kind: int, epoch: int) -> list[int]:
        """A permutation, of which one for each kind is kept."""
        if (kind, epoch) not in self.orders:
            self.orders = {key: order for key, order in self.orders.items() if key[0] != kind}
            order = list(range(len(self.kinds[kind])))
            Random(f"{self.seed} prompts {kind} {epoch}").shuffle(order)
            self.orders[kind, epoch] = order
        return self.orders[kind, epoch]

    def _behind(self) -> int:
        """The kind that is furthest behind its share."""
        total, shares = sum(self.counts) + 1, sum(self.weights)
        lacking = [w / shares * total - count for w, count in zip(self.weights, self.counts, strict=True)]
        return max(range(len(lacking)), key=lambda kind: (lacking[kind], -kind))


@dataclass
class Round:
    """A batch of reinforcement learning: what is drawn in it is the module's business, whose model answers."""

    answers: int = 0
    """How many were sampled, once they are there."""
    unit = "answers/s"

    def __len__(self) -> int:
        return self.answers


class _Rounds(IterableDataset[Round]):
    """Rounds, without end or so many."""

    def __init__(self, count: int | None = None) -> None:
        self.count = count

    def __iter__(self) -> Iterator[Round]:
        return (Round() for _ in (itertools.count() if self.count is None else range(self.count)))


class PromptDataModule(Described, L.LightningDataModule):
    """Prompts for reinforcement learning, and the bundle whose model and tokenizers answer them.

    `held_out` prompts are answered at every validation and never trained on; their rewards may be others than those of
    training, which is how a reward that is gamed shows.
    """

    def __init__(self, bundle: Path, prompts: list[Prompts], held_out: list[Prompts] | None = None) -> None:
        super().__init__()
        if not prompts:
            raise ValueError("data.prompts names no prompts")
        self.bundle, self.prompts, self.held_out = Path(bundle), prompts, held_out or []
        self.opened: list[Sequence[RLPrompt]] = []
        self.opened_held_out: list[Sequence[RLPrompt]] = []

    def setup(self, stage: str) -> None:
        """Open the prompts once."""
        del stage
        if self._spec is not None:
            return
        config, space = read_config(self.bundle), TokenSpace.open(self.bundle)
        media = {}
        if config.flow is not None:
            media[LATENTS] = open_autoencoder(self.bundle / AUTOENCODER).media
        if config.vision is not None:
            media[PATCHES] = MediaSpec.of_patches(config.vision.patches)
        self._spec = DataSpec(space=space, media=media, tokenizers=self.bundle)
        self.opened = [prompts.open() for prompts in self.prompts]
        self.opened_held_out = [prompts.open() for prompts in self.held_out]

    def train_dataloader(self) -> DataLoader[Round]:
        """Rounds without end."""
        return DataLoader(_Rounds(), batch_size=None)

    def val_dataloader(self) -> DataLoader[Round]:
        """One round where there are held-out prompts."""
        return DataLoader(_Rounds(1 if self.held_out else 0), batch_size=None)

    def state_dict(self) -> dict[str, Any]:
        """What a position among the prompts belongs to."""
        return {IDENTITY: self.identity()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises ValueError, with the first difference, for a position among other prompts."""
        check_identity(state_dict.get(IDENTITY), self.identity(), "the checkpoint's position among the prompts")

    def identity(self) -> dict[str, Any]:
        """Kinds of prompts, how many there are of each and how they are answered."""
        kinds = [
            {"kind": type(prompts).__name__, "prompts": prompts, "count": len(opened)}
            for prompts, opened in zip(self.prompts, self.opened, strict=True)
        ]
        return plain({"prompts": kinds})
