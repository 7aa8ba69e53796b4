"""Where documents lie in a shard, in columns of numbers, against the plain list of it."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from data_pipelines.shards.locations import Array, Location, Locations


def some(count: int) -> list[Location]:
    """Keys of many lengths and scripts; media of none, one or two kinds."""
    ids = [Array(i, np.dtype(np.uint16), (i % 7,)) for i in range(count)]
    media: list[dict[str, Array]] = [
        {name: Array(10 * i, np.dtype(np.float16), (i % 3, 2, 4)) for name in ("latents", "patches")[: (i // 4) % 3]}
        for i in range(count)
    ]
    return [Location(f"ключ-{'x' * (i % 5)}{i}", 3 * i, 3 * i + 2, ids[i], media[i]) for i in range(count)]


@pytest.mark.parametrize("count", [0, 1, 40])
def test_columns_give_back_every_location(count: int) -> None:
    plain = some(count)
    columns = Locations(plain)
    assert len(columns) == count
    assert [columns[index] for index in range(count)] == plain
    assert [columns.key(index) for index in range(count)] == [location.key for location in plain]


def test_a_document_costs_a_few_dozen_bytes() -> None:
    """Of text or codes: 16 bytes for its description, 12 for its ids, 8 for the end of its key, and the key."""
    columns = Locations([Location(f"{i:08d}", i, i, Array(i, np.dtype(np.uint16), (64,)), {}) for i in range(1000)])
    columns_held = (columns._key_ends, columns._spans, *columns._starts.values(), *columns._kinds.values())
    assert sum(map(sys.getsizeof, (columns._keys, *columns_held))) < 50 * 1000
