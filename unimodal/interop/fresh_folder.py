"""A folder that appears whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


def check_fresh(folder: Path) -> None:
    """Raise ValueError where something is at that place already; an empty folder is nothing."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"{folder} is there already and not an empty folder: choose another place")


@contextmanager
def fresh_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into; it takes its place when the block ends well and is gone when it does not.

    Raises ValueError as `check_fresh` does.
    """
    check_fresh(folder)
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        unfinished = Path(scratch) / folder.name
        unfinished.mkdir()
        yield unfinished
        check_fresh(folder)
        unfinished.replace(folder)
