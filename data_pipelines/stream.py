"""The training stream: documents in, batches out, in an order that is a pure function of seed, epoch and rank."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from random import Random
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from data_pipelines.batch import PackedBatch, collate
from data_pipelines.packing import best_fit
from data_pipelines.shards.format import TokenDocument
from data_pipelines.templates import Rendered, TemplateConfig, render
from tokenizers_vq.token_space import TokenSpace

log = logging.getLogger(__name__)

ENDLESS = 10**9
"""Length of an endless stream. Lightning fetches one batch ahead of a stream without a length, and a checkpoint would
then hold a position one batch past what was trained on."""


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """Rows of `length` tokens, `rows` of them a batch; packing looks `window` documents ahead."""

    length: int = 256
    rows: int = 32
    window: int = 512
    seed: int = 0


@dataclass(kw_only=True)
class StreamReport:
    """What became of the documents of an epoch."""

    documents: int = 0
    trained: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    capacity: int = 0

    @property
    def efficiency(self) -> float:
        """Share of tokens that are not padding."""
        return self.tokens / self.capacity if self.capacity else 1.0


def epoch_batches(
    documents: Sequence[TokenDocument],
    space: TokenSpace,
    templates: TemplateConfig,
    config: StreamConfig,
    epoch: int,
    report: StreamReport | None = None,
) -> Iterator[list[list[Rendered]]]:
    """The packed rows of one epoch, batch by batch; each document once, in an order drawn from (seed, epoch).

    Too long documents are counted in `report`; the last batch may have fewer rows.
    """
    report = report or StreamReport()
    order = list(range(len(documents)))
    Random(f"order-{config.seed}-{epoch}").shuffle(order)
    pending: list[list[Rendered]] = []
    for start in range(0, len(order), config.window):
        window = order[start : start + config.window]
        pending += _pack(window, documents, space, templates, config, epoch, report)
        while len(pending) >= config.rows:
            batch, pending = pending[: config.rows], pending[config.rows :]
            _count(batch, config, report)
            yield batch
    if pending:
        _count(pending, config, report)
        yield pending


def _pack(
    window: Sequence[int],
    documents: Sequence[TokenDocument],
    space: TokenSpace,
    templates: TemplateConfig,
    config: StreamConfig,
    epoch: int,
    report: StreamReport,
) -> list[list[Rendered]]:
    rendered = []
    for index in window:
        random = Random(f"template-{config.seed}-{epoch}-{index}")
        sequence = render(documents[index], space, templates, random)
        report.documents += 1
        if len(sequence) > config.length:
            report.left_out["longer than a row"] = report.left_out.get("longer than a row", 0) + 1
        else:
            rendered.append(sequence)
    rows = best_fit([len(sequence) for sequence in rendered], config.length)
    Random(f"rows-{config.seed}-{epoch}-{window[0]}").shuffle(rows)
    return [[rendered[index] for index in row] for row in rows]


def _count(batch: Sequence[Sequence[Rendered]], config: StreamConfig, report: StreamReport) -> None:
    report.trained += sum(len(row) for row in batch)
    report.tokens += sum(len(sequence) for row in batch for sequence in row)
    report.capacity += len(batch) * config.length


def _tell(epoch: int, report: StreamReport) -> None:
    log.info("epoch %d: %d documents, packing efficiency %.3f", epoch, report.documents, report.efficiency)
    for reason, count in report.left_out.items():
        log.warning("epoch %d: left out %d of %d documents: %s", epoch, count, report.documents, reason)


class PackedStream(IterableDataset[PackedBatch]):
    """An endless stream of batches whose position is two numbers: epoch, and batches already given.

    In round i of an epoch each rank gets one batch; the last round may leave some with a batch of padding, so that
    all ranks stand at the same place at every step and the state of one is the state of all. A rank's workers take its
    rounds in turn. Resuming with another number of ranks or workers is refused.
    """

    def __init__(
        self,
        documents: Sequence[TokenDocument],
        space: TokenSpace,
        templates: TemplateConfig,
        config: StreamConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__()
        if not documents:
            raise ValueError("there is no document to train on")
        self.documents, self.space, self.templates, self.config = documents, space, templates, config
        self.rank, self.world_size = rank, world_size
        self._position = {"epoch": 0, "batches": 0}

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands."""
        return {**self._position, "shares": self._shares()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved position. Raises ValueError under another number of ranks and workers."""
        if state["shares"] != self._shares():
            raise ValueError(
                f"this run was saved with {state['shares']} ranks x workers and cannot go on with {self._shares()}"
            )
        self._position = {"epoch": state["epoch"], "batches": state["batches"]}

    def __len__(self) -> int:
        return ENDLESS

    def __iter__(self) -> Iterator[PackedBatch]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        while True:
            epoch, done = self._position["epoch"], self._position["batches"]
            report, given = StreamReport(), 0
            for rows in islice(self._rounds(epoch, report), first, None, step):
                given += 1
                if given <= done:
                    continue
                self._position = {"epoch": epoch, "batches": given}
                yield collate(rows, self.config.length, self.space, self.config.rows)
            if not given:
                raise ValueError(
                    f"{len(self.documents)} documents give no batch of {self.config.rows} rows of "
                    f"{self.config.length} tokens to worker {first} of {step}; "
                    "use fewer workers, or fewer or longer rows"
                )
            self._position = {"epoch": epoch + 1, "batches": 0}
            if self.rank == first == 0:
                _tell(epoch, report)

    def _rounds(self, epoch: int, report: StreamReport) -> Iterator[list[list[Rendered]]]:
        """This rank's batch of every round; without rows where the epoch's last round has none for it."""
        batches = epoch_batches(self.documents, self.space, self.templates, self.config, epoch, report)
        while group := list(islice(batches, self.world_size)):
            yield group[self.rank] if self.rank < len(group) else []

    def _shares(self) -> int:
        worker = get_worker_info()
        return self.world_size * (worker.num_workers if worker else 1)
