"""Mixtures: from which source the next document comes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal, NamedTuple

from data_pipelines.shards.documents import epoch_order, shard_groups


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """Documents are drawn from several sources in the proportion of `weights`, one for each folder of shards.

    From the share `second_from` of a run on, `second_weights` take their place: Chameleon's second stage halves the
    weights of the first and mixes in a new set for the last 20% (arXiv 2405.09818, section 2.2), here
    `weights: [1, 1, 0], second_weights: [0.5, 0.5, 1]`. `when_dry` says what happens where a source has given all its
    documents: `repeat` starts it again in another order, `stop` ends the run.
    """

    weights: tuple[float, ...]
    second_weights: tuple[float, ...] | None = None
    second_from: float = 0.8
    when_dry: Literal["repeat", "stop"] = "repeat"

    def __post_init__(self) -> None:
        for weights in filter(None, (self.weights, self.second_weights)):
            if min(weights) < 0 or sum(weights) <= 0 or len(weights) != len(self.weights):
                raise ValueError(f"weights are not negative, not all 0, and as many in both stages, got {self}")
        if not 0 < self.second_from <= 1:
            raise ValueError(f"the second stage starts in (0, 1] of the run, got {self.second_from}")
        if self.when_dry not in ("repeat", "stop"):
            raise ValueError(f"when_dry is 'repeat' or 'stop', got {self.when_dry!r}")


class DrawnDocument(NamedTuple):
    """A document: its source, the epoch of that source, and its index there."""

    source: int
    epoch: int
    index: int


@dataclass(kw_only=True)
class SourceCursor:
    """The position in a source: epoch, documents taken in it, and draws since the stage started."""

    epoch: int = 0
    taken: int = 0
    draws: int = 0


class Mixture:
    """Draws documents so that at every moment each source has its share of draws, to within one document.

    Which source comes next is not random; the order inside a source is drawn from (seed, source, epoch). The state is a
    few numbers a source.
    """

    def __init__(self, sizes: Sequence[Sequence[int]], config: MixtureConfig, seed: int, together: int) -> None:
        """sizes: of every source, the documents in each shard. Raises ValueError for weights that do not fit them."""
        if len(sizes) != len(config.weights):
            raise ValueError(f"{len(config.weights)} weights for {len(sizes)} folders of shards: give one for each")
        for source, shards in enumerate(sizes):
            weights = (config.weights[source], (config.second_weights or config.weights)[source])
            if not sum(shards) and max(weights) > 0:
                raise ValueError(f"folder {source + 1} of {len(sizes)} holds no document to train on")
        self.sizes, self.config, self.seed, self.together = sizes, config, seed, together
        self.totals = [sum(shards) for shards in sizes]
        self.cursors = [SourceCursor() for _ in sizes]
        self.stage = 0
        self._orders: dict[int, tuple[int, list[int]]] = {}

    def start_stage(self, stage: int) -> None:
        """0 is the first stage, 1 the second."""
        if stage != self.stage:
            self.stage = stage
            for cursor in self.cursors:
                cursor.draws = 0

    def draw(self) -> DrawnDocument | None:
        """The next document, or None once the mixture ends."""
        weights = self.config.second_weights if self.stage and self.config.second_weights else self.config.weights
        waiting = [source for source, weight in enumerate(weights) if weight > 0]
        source = min(waiting, key=lambda s: ((self.cursors[s].draws + 1) / weights[s], s))
        cursor = self.cursors[source]
        if cursor.taken == self.totals[source]:
            if self.config.when_dry == "stop":
                return None
            cursor.epoch, cursor.taken = cursor.epoch + 1, 0
        index = self._order(source, cursor.epoch)[cursor.taken]
        cursor.taken += 1
        cursor.draws += 1
        return DrawnDocument(source, cursor.epoch, index)

    def groups(self, source: int, epoch: int) -> list[list[int]]:
        """The shards of a source in the order of an epoch, by the groups within which documents are shuffled."""
        return shard_groups(len(self.sizes[source]), self.together, self._random(source, epoch))

    def _random(self, source: int, epoch: int) -> Random:
        return Random(f"order-{self.seed}-{source}-{epoch}")

    def _order(self, source: int, epoch: int) -> list[int]:
        known = self._orders.get(source)
        if known is None or known[0] != epoch:
            random = self._random(source, epoch)
            known = self._orders[source] = (epoch, epoch_order(self.sizes[source], self.together, random))
        return known[1]

    def state(self) -> dict[str, Any]:
        """The position in every source, as plain numbers; checkpoints keep the key `turns`."""
        return {"stage": self.stage, "turns": [[c.epoch, c.taken, c.draws] for c in self.cursors]}

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of `state`. Raises ValueError where it has another number of sources."""
        saved = state["turns"]
        if len(saved) != len(self.cursors):
            raise ValueError(f"this run was saved with {len(saved)} sources, now there are {len(self.cursors)}")
        for source, (_, taken, _) in enumerate(saved):
            if taken > self.totals[source]:
                raise ValueError(f"this run was saved with more documents than the {self.totals[source]} there are now")
        self.stage = state["stage"]
        self.cursors = [SourceCursor(epoch=epoch, taken=taken, draws=draws) for epoch, taken, draws in saved]
