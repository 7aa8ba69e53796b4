"""Remote shards are fetched before their documents are drawn: the order of an epoch says which come next."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from data_pipelines.mixture import Mixture
from data_pipelines.shards.cache import CachedFile
from data_pipelines.shards.documents import Documents


class FetchAhead:
    """Follows the position of a mixture: once it draws from a group of shards, the rest of it and the next are fetched.

    Only sources with shards elsewhere are followed.
    """

    def __init__(self, sources: Sequence[Documents], mixture: Mixture) -> None:
        self.mixture = mixture
        self.files = {number: files for number, source in enumerate(sources) if any(files := _remote_files(source))}
        self._ends: dict[int, tuple[int, list[list[int]], list[int]]] = {}
        self._reached: dict[int, tuple[int, int]] = {}

    def follow(self) -> None:
        """Ask for what the position of each source has come near to."""
        for source, files in self.files.items():
            cursor = self.mixture.cursors[source]
            groups, ends = self._groups(source, cursor.epoch)
            number = min(bisect_right(ends, cursor.taken), len(groups) - 1)
            if self._reached.get(source) == (cursor.epoch, number):
                continue
            self._reached[source] = (cursor.epoch, number)
            after = groups[number + 1] if number + 1 < len(groups) else self.mixture.groups(source, cursor.epoch + 1)[0]
            for shard in (*groups[number], *after):
                if (file := files[shard]) is not None:
                    file.prefetch()

    def _groups(self, source: int, epoch: int) -> tuple[list[list[int]], list[int]]:
        known = self._ends.get(source)
        if known is None or known[0] != epoch:
            groups, sizes = self.mixture.groups(source, epoch), self.mixture.sizes[source]
            ends = list(accumulate(sum(sizes[shard] for shard in group) for group in groups))
            known = self._ends[source] = (epoch, groups, ends)
        return known[1], known[2]


def _remote_files(source: Documents) -> list[CachedFile | None]:
    files = [getattr(shard, "file", None) for shard in source.shards]
    return [file if isinstance(file, CachedFile) else None for file in files]
