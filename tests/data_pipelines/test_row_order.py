"""The order of rows: drawn anew in every window, and no picture of how packing filled them."""

from __future__ import annotations

import statistics

from data_pipelines.mixture import MixtureConfig
from data_pipelines.planning import Plan, StreamConfig
from data_pipelines.shards import TokenDocument
from data_pipelines.shards.documents import Documents
from data_pipelines.templates import TemplateConfig
from tests.oracles.pictures import SPACE, text

LENGTHS = range(1, 61)


def longest_of_rows(seed: int, count: int = 20) -> list[int]:
    """The longest document of each of the first rows; every document is text of a length of its own."""
    documents = [TokenDocument(key=str(n), segments=(text("text", *[20] * n),)) for n in LENGTHS]
    config = StreamConfig(length=64, rows=4, window=len(documents), seed=seed)
    plan = Plan([Documents([documents])], SPACE, TemplateConfig(), config, MixtureConfig(weights=(1.0,)))
    return [max(len(outline) for outline in outlines) for _, outlines in plan.take(count)]


def test_long_documents_do_not_come_before_short_ones() -> None:
    """Packing places the longest first; a batch that had them together would be unlike the next."""
    falls = []
    for seed in range(20):
        rows = longest_of_rows(seed)
        falls.append(statistics.correlation(range(len(rows)), rows))
    assert abs(statistics.mean(falls)) < 0.15


def test_another_seed_gives_another_order_of_rows() -> None:
    assert longest_of_rows(1) == longest_of_rows(1) != longest_of_rows(2)
