"""The plan: how a document is formatted depends on the seed, its source, its epoch and its index alone."""

from __future__ import annotations

from typing import Any

import pytest

from data_pipelines.mixture import MixtureConfig
from data_pipelines.planning import DocumentPart, Plan, StreamConfig
from data_pipelines.shards import TokenDocument
from data_pipelines.shards.documents import Documents
from data_pipelines.templates import TemplateConfig
from tests.oracles.pictures import SPACE, image, text

TEMPLATES = TemplateConfig(image_first=0.5, drop_prompt=0.2, max_branches=2)
NUMBER = 6


def asked(index: int) -> TokenDocument:
    """A picture with three captions and four questions, of which two are asked."""
    captions = [text("caption", 10 + n, 20 + index) for n in range(3)]
    pairs = [segment for n in range(4) for segment in (text("question", 30 + n, 20 + index), text("answer", 40 + n))]
    return TokenDocument(key=str(index), segments=(image(1, 2, 3, 4), *captions, *pairs))


def formatted(num_rows: int, sources: int = 1, **changes: Any) -> dict[DocumentPart, list[int]]:
    """The ids of every part of the first rows of a plan that repeats its documents."""
    config = StreamConfig(**{"length": 48, "rows": 2, "window": 8, "seed": 3, **changes})
    documents = [Documents([[asked(index) for index in range(NUMBER)]]) for _ in range(sources)]
    plan = Plan(documents, SPACE, TEMPLATES, config, MixtureConfig(weights=(1.0,) * sources))
    return {
        part: outline.build().ids.tolist()
        for row, outlines in plan.take(num_rows)
        for part, outline in zip(row, outlines, strict=True)
    }


@pytest.mark.parametrize("index", range(NUMBER))
def test_a_document_is_formatted_differently_in_another_epoch(index: int) -> None:
    found = formatted(60)
    by_epoch = {part.epoch: tuple(ids) for part, ids in found.items() if part.index == index}
    assert len(by_epoch) > 8
    assert len(set(by_epoch.values())) > 4, "each epoch draws one of dozens of forms"


def test_two_sources_and_two_seeds_format_a_document_differently() -> None:
    found, other = formatted(40, sources=2), formatted(40, sources=2, seed=4)
    first = {(part.epoch, part.index): ids for part, ids in found.items() if part.source == 0}
    second = {(part.epoch, part.index): ids for part, ids in found.items() if part.source == 1}
    common = first.keys() & second.keys()
    assert len(common) > 10 and sum(first[key] != second[key] for key in common) > len(common) // 2
    common = found.keys() & other.keys()
    assert len(common) > 10 and sum(found[part] != other[part] for part in common) > len(common) // 2


def test_a_document_is_formatted_the_same_whatever_is_packed_beside_it() -> None:
    found = formatted(40)
    for changes in ({"length": 64}, {"window": 3}, {"rows": 5}):
        other = formatted(40, **changes)
        common = found.keys() & other.keys()
        assert len(common) > 10 and all(found[part] == other[part] for part in common)
