"""The plan of training: which documents lie in which row of which batch. It is made from lengths; no id is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple

from data_pipelines.fetch_ahead import FetchAhead
from data_pipelines.mixture import Mixture, MixtureConfig
from data_pipelines.outline import Outline
from data_pipelines.packing import best_fit, hold_back
from data_pipelines.shards.documents import Documents
from data_pipelines.templates import TemplateConfig, outline
from tokenizers_vq.token_space import TokenSpace

TOO_LONG = "longer than a row, with an image or a question that does not fit"


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """Rows of `length` tokens, `rows` of them a batch; packing considers `window` documents ahead.

    Documents are shuffled among `shards_together` shards at a time.
    """

    length: int = 256
    rows: int = 32
    window: int = 512
    seed: int = 0
    shards_together: int = 64

    def __post_init__(self) -> None:
        if min(self.length, self.rows, self.window, self.shards_together) < 1:
            raise ValueError(f"length, rows, window and shards_together are at least 1, got {self}")


@dataclass(kw_only=True)
class SourceReport:
    """What became of the documents that were drawn from one source."""

    documents: int = 0
    trained: int = 0
    cut: int = 0
    skipped: Counter[str] = field(default_factory=Counter)


@dataclass(kw_only=True)
class StreamReport:
    """What became of the documents drawn so far. Those neither trained nor skipped are still to be packed."""

    sources: list[SourceReport] = field(default_factory=lambda: [SourceReport()])
    tokens: int = 0
    capacity: int = 0

    @property
    def documents(self) -> int:
        """Drawn from all sources."""
        return sum(source.documents for source in self.sources)

    @property
    def trained(self) -> int:
        """Given to training, of all sources."""
        return sum(source.trained for source in self.sources)

    @property
    def skipped(self) -> dict[str, int]:
        """Reason -> documents of all sources."""
        return dict(sum((source.skipped for source in self.sources), Counter()))

    @property
    def efficiency(self) -> float:
        """Share of tokens that are not padding."""
        return self.tokens / self.capacity if self.capacity else 1.0


class DocumentPart(NamedTuple):
    """A document, or the part of it that fits a row: source, epoch, index there, number of the part."""

    source: int
    epoch: int
    index: int
    part: int


PlannedRow = list[DocumentPart]


class Plan:
    """Rows without end, or until the mixture ends; what comes next is a pure function of the state.

    The state is a few numbers a source, the parts that wait to be packed, and the rows that wait to be given.
    """

    def __init__(
        self,
        sources: Sequence[Documents],
        space: TokenSpace,
        templates: TemplateConfig,
        config: StreamConfig,
        mixture: MixtureConfig,
        second_stage_row: float = float("inf"),
    ) -> None:
        """second_stage_row: how many rows are given before the mixture's second stage starts."""
        self.sources, self.space, self.templates, self.config = sources, space, templates, config
        self.mixture = Mixture([s.sizes for s in sources], mixture, config.seed, config.shards_together)
        self._ahead = FetchAhead(sources, self.mixture)
        self.second_stage_row = second_stage_row
        self.report = StreamReport(sources=[SourceReport() for _ in sources])
        self.windows = self.rows_given = 0
        self.ended = False
        self.waiting: list[DocumentPart] = []
        self.rows: list[PlannedRow] = []
        self._outlines: dict[DocumentPart, Outline] = {}

    def take(self, count: int) -> list[tuple[PlannedRow, list[Outline]]]:
        """The next `count` rows with the outlines of their parts; fewer once the mixture has ended."""
        while len(self.rows) < count and not self.ended:
            self._pack_window()
        given, self.rows = self.rows[:count], self.rows[count:]
        self.rows_given += len(given)
        self.report.capacity += len(given) * self.config.length
        return [(row, [self._given(part) for part in row]) for row in given]

    def peek(self, count: int) -> list[list[Outline]]:
        """The outlines of the rows that `take` will give next."""
        while len(self.rows) < count and not self.ended:
            self._pack_window()
        return [[self._outline(part) for part in row] for row in self.rows[:count]]

    def outlines(self, row: PlannedRow) -> list[Outline]:
        """The outlines of a row that was given before, made again and not kept."""
        found = [self._outline(part) for part in row]
        self._outlines.clear()
        return found

    def state(self) -> dict[str, Any]:
        """As plain numbers and lists."""
        return {
            "mixture": self.mixture.state(),
            "windows": self.windows,
            "rows_given": self.rows_given,
            "ended": self.ended,
            "waiting": [list(part) for part in self.waiting],
            "rows": [[list(part) for part in row] for row in self.rows],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of `state`; counts of the report start at 0."""
        self.mixture.load_state(state["mixture"])
        self._check_parts([*state["waiting"], *(part for row in state["rows"] for part in row)])
        self.windows, self.rows_given, self.ended = state["windows"], state["rows_given"], state["ended"]
        self.waiting = [DocumentPart(*part) for part in state["waiting"]]
        self.rows = [[DocumentPart(*part) for part in row] for row in state["rows"]]
        self._outlines = {}

    def _check_parts(self, parts: Iterable[Sequence[int]]) -> None:
        """Raise ValueError for a position in other documents: an index that is not there."""
        for source, _, index, _ in parts:
            if source >= len(self.sources) or index >= len(self.sources[source]):
                raise ValueError(f"the position in the data is one of other documents: there is no {index} of {source}")

    def _pack_window(self) -> None:
        self.mixture.start_stage(int(self.rows_given + len(self.rows) >= self.second_stage_row))
        self._ahead.follow()
        waited = len(self.waiting)
        parts = [*self.waiting, *self._drawn()]
        if not (parts or self.rows or self.report.trained) and self.report.documents >= sum(map(len, self.sources)):
            raise ValueError(
                f"none of {self.report.documents} documents fits a row of {self.config.length} tokens; "
                "use longer rows (data.stream.length)"
            )
        lengths = [len(self._outline(part)) for part in parts]
        rows = best_fit(lengths, self.config.length)
        held = set() if self.ended else hold_back(lengths, rows, self.config.length, waited)
        ready = [number for number in range(len(rows)) if number not in held]
        Random(f"rows-{self.config.seed}-{self.windows}").shuffle(ready)
        self.waiting = [parts[index] for number in sorted(held) for index in rows[number]]
        self.rows += [[parts[index] for index in rows[number]] for number in ready]
        self.windows += 1

    def _drawn(self) -> Iterable[DocumentPart]:
        """The parts of the next window of documents."""
        for _ in range(self.config.window):
            drawn = self.mixture.draw()
            if drawn is None:
                self.ended = True
                return
            parts = self._parts(*drawn)
            report = self.report.sources[drawn.source]
            report.documents += 1
            report.cut += len(parts) > 1
            if not parts:
                report.skipped[TOO_LONG] += 1
            yield from parts

    def _parts(self, source: int, epoch: int, index: int) -> list[DocumentPart]:
        random = Random(f"template-{self.config.seed}-{source}-{epoch}-{index}")
        whole = outline(self.sources[source][index], self.space, self.templates, random)
        capacity = self.config.length
        pieces = [whole] if len(whole) <= capacity else whole.cut(capacity)
        parts = [DocumentPart(source, epoch, index, number) for number in range(len(pieces))]
        self._outlines.update(zip(parts, pieces, strict=True))
        return parts

    def _outline(self, part: DocumentPart) -> Outline:
        if part not in self._outlines:
            self._parts(part.source, part.epoch, part.index)
        return self._outlines[part]

    def _given(self, part: DocumentPart) -> Outline:
        found = self._outline(part)
        del self._outlines[part]
        self.report.tokens += len(found)
        self.report.sources[part.source].trained += part.part == 0
        return found
