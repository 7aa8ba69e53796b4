"""A run that is resumed with other settings says which they are; callbacks/settings.py makes them hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

UNSAID = ("ckpt_path", "config", "trainer.max_steps", "trainer.callbacks", "trainer.logger")
"""What differs between the parts of most runs."""


def changed_settings(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """`name: was 1, is 2` for each value that differs between two configs of plain values."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys((*before, *now)):
            yield from changed_settings(before.get(key), now.get(key), f"{name}.{key}".lstrip("."))
    elif before != now and not name.startswith(UNSAID):
        yield f"{name}: was {before}, is {now}"


def config_before(folder: Path) -> Any:
    """That of the last run in a run's folder whose config can be read, since a kill may leave half of one; or None."""
    for path in sorted(folder.glob("logs/version_*/config.yaml"), key=_version, reverse=True):
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            continue
        if isinstance(found, dict):
            return found
    return None


def _version(path: Path) -> int:
    number = path.parent.name.removeprefix("version_")
    return int(number) if number.isdigit() else -1


def changes_line(changes: Sequence[str]) -> str:
    """One line for people."""
    return "resumed with other settings: " + "; ".join(changes)
