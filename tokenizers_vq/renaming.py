"""Old keys and today's: what every table of old names needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The same values under today's keys; those that the table does not name stay."""
    return {names.get(name, name): value for name, value in values.items()}
