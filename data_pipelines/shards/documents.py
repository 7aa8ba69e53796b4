"""Documents of many shards as one sequence, and the order in which an epoch takes them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from random import Random
from typing import Protocol, overload

from data_pipelines.shards.format import DocumentSequence, TokenDocument


class Keyed(Protocol):
    """A shard, or what can stand for one: documents by number, and their keys."""

    @property
    def keys(self) -> list[str]: ...
    def __len__(self) -> int: ...
    @overload
    def __getitem__(self, index: int) -> TokenDocument: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenDocument]: ...


class Documents(DocumentSequence):
    """Some documents of some shards; each is read when it is asked for."""

    def __init__(
        self, shards: Sequence[Keyed | Sequence[TokenDocument]], chosen: Sequence[Sequence[int]] | None = None
    ) -> None:
        """chosen: for each shard, the indices of its documents that are taken; all when None."""
        self.shards = shards
        self.chosen = [range(len(shard)) for shard in shards] if chosen is None else chosen
        self._ends = list(accumulate(map(len, self.chosen)))

    @property
    def sizes(self) -> list[int]:
        """Documents chosen of each shard."""
        return [len(chosen) for chosen in self.chosen]

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def document(self, index: int) -> TokenDocument:
        """The index-th of those chosen."""
        shard = bisect_right(self._ends, index)
        return self.shards[shard][self.chosen[shard][index - (self._ends[shard] - len(self.chosen[shard]))]]


def epoch_order(sizes: Sequence[int], together: int, random: Random) -> list[int]:
    """Indices into Documents with shards of these sizes, each once.

    Shards come in random order, and the documents of `together` neighbours in that order are shuffled among each
    other, so that only so many files are read at a time.
    """
    starts = [end - size for end, size in zip(accumulate(sizes), sizes, strict=True)]
    order: list[int] = []
    for shards in shard_groups(len(sizes), together, random):
        group = [starts[s] + i for s in shards for i in range(sizes[s])]
        random.shuffle(group)
        order += group
    return order


def shard_groups(count: int, together: int, random: Random) -> list[list[int]]:
    """Shards by number in the order of an epoch, those whose documents are shuffled among each other together."""
    shards = list(range(count))
    random.shuffle(shards)
    return [shards[first : first + together] for first in range(0, count, together)]
