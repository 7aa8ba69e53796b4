"""JSON of their configs: read, and completed by the class that they belong to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar, cast

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

BAGEL_CONFIG_FILE = "llm_config.json"

Whole = TypeVar("Whole", bound=PreTrainedConfig)


def read_fields(path: Path, remedy: str) -> dict[str, Any]:
    """The fields of a JSON file. Raises ValueError where it is missing (what to do is `remedy`) or broken."""
    if not path.is_file():
        raise ValueError(f"{path} is missing: {remedy}")
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def completed(kind: type[Whole], written: dict[str, Any], path: Path) -> Whole:
    """Fields as their class completes them. Raises ValueError for what it does not take."""
    try:
        return cast("Whole", kind.from_dict(dict(written)))
    except (StrictDataclassError, TypeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is not a config of {kind.model_type}: {reason}") from error
