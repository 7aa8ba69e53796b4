"""Finished shards of a folder whose manifest is not written yet, so that an interrupted job resumes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipelines.old_names import MANIFEST_KEYS, renamed
from data_pipelines.shards.format import PARTS_FOLDER, RECIPE_FILE, ShardEntry
from data_pipelines.shards.writer import write_whole


@dataclass(frozen=True, kw_only=True)
class SkippedCopy:
    """A copy of a document that is not in its shard."""

    name: str
    copy: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class FinishedShard:
    """Its line for the manifest (None where nothing of it was usable), what was skipped, and counts beside that."""

    entry: ShardEntry | None
    skipped: tuple[SkippedCopy, ...]
    notes: dict[str, int] = field(default_factory=dict)


class JobParts:
    """`parts/000012.json` stands beside `000012.tar` until the manifest takes their place.

    All parts follow one recipe; a folder with parts of another recipe is refused with a ValueError.
    """

    def __init__(self, folder: Path, recipe: dict[str, Any]) -> None:
        self.shards, self.folder = folder, folder / PARTS_FOLDER
        self.folder.mkdir(parents=True, exist_ok=True)
        recipe = json.loads(json.dumps(recipe))
        stated = _read(self.folder / RECIPE_FILE)
        if stated is None:
            write_whole(self.folder / RECIPE_FILE, json.dumps(recipe).encode())
        elif stated != recipe:
            different = next(name for name in {**recipe, **stated} if recipe.get(name) != stated.get(name))
            raise ValueError(
                f"{folder} holds a part of other shards: {different} was {stated.get(different)}, "
                f"now it is {recipe.get(different)}; repeat the first command, or remove the folder"
            )

    def finished(self, index: int) -> FinishedShard | None:
        """A shard that is whole, or None. One whose file is missing or changed is not."""
        values = _read(self._path(index))
        if values is None:
            return None
        values = renamed(values, MANIFEST_KEYS)
        try:
            entry = ShardEntry(**values["entry"]) if values["entry"] else None
            skipped = tuple(SkippedCopy(**one) for one in values["skipped"])
            part = FinishedShard(entry=entry, skipped=skipped, notes=dict(values.get("notes", {})))
        except (KeyError, TypeError, ValueError):
            return None
        return part if entry is None or self._is_whole(entry) else None

    def finish(self, index: int, part: FinishedShard) -> None:
        """Note a shard whose file is written."""
        write_whole(self._path(index), json.dumps(dataclasses.asdict(part)).encode())

    def all(self, count: int) -> list[FinishedShard] | None:
        """The parts of shards 0 to count - 1, or None while one is missing."""
        parts = [self.finished(index) for index in range(count)]
        return [part for part in parts if part is not None] if None not in parts else None

    def remove(self) -> None:
        """Once the manifest is written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:06d}.json"

    def _is_whole(self, entry: ShardEntry) -> bool:
        file = self.shards / entry.name
        return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == entry.sha256


def _read(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None
