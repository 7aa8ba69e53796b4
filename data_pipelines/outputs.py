"""Places for results, looked at before the work: what cannot be written, and what of a user's would be overwritten."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path


def check_folder(path: Path) -> None:
    """Raise ValueError where results cannot go into a folder at this place, which may not be there yet."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is not a folder: results cannot go there")
    _check_writable(path, path)


def check_file(path: Path) -> None:
    """Raise ValueError where a results file cannot be written at this place; a file that is there may be replaced."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a file for the results")
    if path.exists() and not os.access(path, os.W_OK):
        raise ValueError(f"{path} cannot be written")
    _check_writable(path.parent, path)


def check_apart(out: Path, inputs: Iterable[Path | None], remedy: str = "give another folder") -> None:
    """Raise ValueError where `out` is one of the files or folders that are read."""
    for path in inputs:
        if path is not None and path.resolve() == out.resolve():
            raise ValueError(f"{out} is read and would be written: {remedy}")


def check_names_free(folder: Path, names: re.Pattern[str], inputs: Iterable[Path] = ()) -> None:
    """Raise ValueError where a file that is read lies in `folder` under one of the `names` that are written there."""
    for path in inputs:
        if path.resolve().parent == folder.resolve() and names.fullmatch(path.resolve().name):
            raise ValueError(f"{path} is read and would be overwritten: give another folder than {folder}")


def _check_writable(folder: Path, path: Path) -> None:
    there = next((each for each in (folder, *folder.absolute().parents) if each.exists()), None)
    if there is None or not there.is_dir():
        raise ValueError(f"{path} cannot be written: {there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{path} cannot be written: no right to write into {there}")
