"""The training stream: documents in, batches out, in an order that is a pure function of seed and position."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch.utils.data import Dataset, IterableDataset, get_worker_info

from data_pipelines.batch import PackedBatch, collate, weight_of_noised
from data_pipelines.mixture import MixtureConfig
from data_pipelines.outline import Outline, Rendered
from data_pipelines.planning import Plan, PlannedRow, StreamConfig, StreamReport
from data_pipelines.shards.documents import Documents
from data_pipelines.shards.format import TokenDocument
from data_pipelines.templates import TemplateConfig
from tokenizers_vq.token_space import TokenSpace

log = logging.getLogger(__name__)

ENDLESS = 10**9
"""Length of an endless stream. Lightning fetches one batch ahead of a stream without a length, and a checkpoint would
then hold a position one batch past what was trained on."""


def epoch_batches(
    documents: Sequence[TokenDocument],
    space: TokenSpace,
    templates: TemplateConfig,
    config: StreamConfig,
    report: StreamReport | None = None,
) -> Iterator[list[list[Rendered]]]:
    """The packed rows of one pass over documents, batch by batch, each document once.

    What does not fit is counted in `report`; the last batch may have fewer rows.
    """
    if not documents:
        return
    plan = Plan([Documents([documents])], space, templates, config, MixtureConfig(weights=(1.0,), when_dry="stop"))
    if report is not None:
        plan.report = report
    while batch := plan.take(config.rows):
        yield [_built(outlines) for _, outlines in batch]


class FixedBatches(Dataset[PackedBatch]):
    """The batches of one pass over documents, the same every time; what is held is their plan, not their tokens.

    `count` of them at most; all where it is None. Of `world_size` ranks each has every `world_size`-th of them, all as
    many: a rank that the last round leaves without one gets a batch of padding.
    """

    def __init__(
        self,
        documents: Sequence[TokenDocument],
        space: TokenSpace,
        templates: TemplateConfig,
        config: StreamConfig,
        count: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        once = MixtureConfig(weights=(1.0,), when_dry="stop")
        self.space, self.length = space, config.length
        self.batches: list[list[PlannedRow]] = []
        self._plan = Plan([Documents([documents])], space, templates, config, once) if documents else None
        while self._plan and (count is None or len(self.batches) < count) and (given := self._plan.take(config.rows)):
            self.batches.append([row for row, _ in given])
        rounds = -(-len(self.batches) // world_size)
        self.batches = [
            self.batches[i] if i < len(self.batches) else [] for i in range(rank, rounds * world_size, world_size)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> PackedBatch:
        """One batch. Raises IndexError past the last, which ends a loop."""
        assert self._plan is not None
        rows = [_built(self._plan.outlines(row)) for row in self.batches[index]]
        return collate(rows, self.length, self.space, num_rows=1)


class PackedStream(IterableDataset[PackedBatch]):
    """Batches whose position is the state of a plan and a number of rounds.

    In each round every rank gets one batch; once a mixture has ended, the last round may leave some with a batch of
    padding, so that all ranks have the same position at every step and the state of one is the state of all. A rank's
    workers take its rounds in turn; each follows the whole plan, which is made from lengths, and reads its own rows.

    Without workers, a run may resume with another number of ranks: no document is dropped and none comes twice. With
    workers that is refused, because each of them has a position of its own.
    """

    def __init__(
        self,
        sources: Sequence[Documents],
        space: TokenSpace,
        templates: TemplateConfig,
        config: StreamConfig,
        mixture: MixtureConfig | None = None,
        *,
        names: Sequence[str] = (),
        second_stage_round: float = float("inf"),
        rounds_per_step: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """second_stage_round: how many rounds are given before the mixture's second stage starts.
        rounds_per_step: how many of them make an optimizer step, over which noised tokens are weighed."""
        super().__init__()
        if not sum(map(len, sources)):
            raise ValueError("there is no document to train on")
        self.sources, self.config, self.space = sources, config, space
        self.names = names or [f"source {number}" for number in range(len(sources))]
        self.rank, self.world_size = rank, world_size
        rows = world_size * config.rows
        mixture = mixture or MixtureConfig(weights=(1.0,) * len(sources))
        self._plan = Plan(sources, space, templates, config, mixture, second_stage_round * rows)
        self.rounds_per_step = rounds_per_step
        self._rounds = 0
        self._noised_weight: float | None = None
        """Of a noised token in the present step; None until a round of it was weighed."""

    @property
    def report(self) -> StreamReport:
        """What became of the documents drawn by this process since it started."""
        return self._plan.report

    def state_dict(self) -> dict[str, Any]:
        """The position of the stream."""
        workers = _worker()[1]
        position = {"ranks": self.world_size, "workers": workers, "rounds": self._rounds}
        return {**position, "latent_weight": self._noised_weight, **self._plan.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a saved position. Raises ValueError under a number of ranks and workers that cannot."""
        was, now = (state["ranks"], state["workers"]), (self.world_size, _worker()[1])
        if was != now and (was[1], now[1]) != (1, 1):
            raise ValueError(
                f"this run was saved with {was[0]} ranks of {was[1]} loader processes each and cannot resume exactly "
                f"with {now[0]} of {now[1]}, because each process has a position of its own; take the same numbers"
            )
        self._rounds = state["rounds"]
        self._noised_weight = state.get("latent_weight") if was == now else None
        self._plan.load_state(state)

    def __len__(self) -> int:
        return ENDLESS

    def __iter__(self) -> Iterator[PackedBatch]:
        worker, workers = _worker()
        rows = self.config.rows
        while True:
            epochs = [cursor.epoch for cursor in self._plan.mixture.cursors]
            position = self._rounds % self.rounds_per_step
            if position == 0 or self._noised_weight is None:
                rest = self.rounds_per_step - position
                self._noised_weight = self._weigh(self._plan.peek(rest * self.world_size * rows))
            if not (given := self._plan.take(self.world_size * rows)):
                return
            self._rounds += 1
            if self.rank == worker == 0:
                self._log_epochs(epochs)
            if (self._rounds - 1) % workers == worker:
                given = given[self.rank * rows : (self.rank + 1) * rows]
                built = [_built(outlines) for _, outlines in given]
                yield collate(built, self.config.length, self.space, rows, self._noised_weight)

    def _weigh(self, step: Iterable[Sequence[Outline]]) -> float:
        """The weight of a noised token in a step of these rows, all ranks' together."""
        if not self._plan.templates.media:
            return 0.0
        outlines = [outline for row in step for outline in row]
        return weight_of_noised(sum(o.weight for o in outlines), sum(o.num_noised for o in outlines))

    def _log_epochs(self, epochs: Sequence[int]) -> None:
        """A line for each source that started another epoch."""
        for source, cursor in enumerate(self._plan.mixture.cursors):
            if cursor.epoch == epochs[source]:
                continue
            report, name = self.report.sources[source], self.names[source]
            line = "%s: epoch %d is done; %d documents drawn, %d trained, %d of them in parts; rows are %.1f%% full"
            counts = (report.documents, report.trained, report.cut)
            log.info(line, name, cursor.epoch - 1, *counts, 100 * self.report.efficiency)
            for reason, count in report.skipped.items():
                log.warning("%s: skipped %d of %d documents: %s", name, count, report.documents, reason)


def _worker() -> tuple[int, int]:
    """Number of this loader process, and how many there are; the main process is the first of one."""
    info = get_worker_info()
    return (info.id, info.num_workers) if info else (0, 1)


def _built(outlines: Sequence[Outline]) -> list[Rendered]:
    return [outline.build() for outline in outlines]
