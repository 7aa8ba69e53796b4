"""Prompts from a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from data_pipelines.documents import ImageSegment
from unimodal.training.rl.prompts.base import Prompts, RLPrompt
from unimodal.training.rl.prompts.documents import LatePrompts


@dataclass(frozen=True, kw_only=True)
class FilePrompts(Prompts):
    """Lines of JSON: `{"prompt": "..." or ["words", {"image": "path"}], "facts": {...}}`; paths are relative to it."""

    path: Path = field(default=Path("prompts.jsonl"))

    def open(self) -> Sequence[RLPrompt]:
        """See `Prompts`."""
        try:
            lines = self.path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{self.path} cannot be read as prompts: {error}") from error
        makers = [
            partial(_prompt, f"{self.path.name} line {number}", self._checked(number, line), self.path.parent)
            for number, line in enumerate(lines, start=1)
            if line.strip()
        ]
        if not makers:
            raise ValueError(f"{self.path} holds no prompts")
        return LatePrompts(makers)

    def _checked(self, number: int, line: str) -> Mapping[str, Any]:
        try:
            value = json.loads(line)
            parts = value["prompt"] if isinstance(value["prompt"], list) else [value["prompt"]]
            good = parts and all(isinstance(part, str) or set(part) == {"image"} for part in parts)
            good = good and isinstance(value.get("facts", {}), dict)
        except (ValueError, TypeError, KeyError):
            good, value = False, {}
        if not good:
            raise ValueError(f'{self.path} line {number} is not {{"prompt": ..., "facts": {{...}}}}: {line[:80]}')
        for part in parts:
            if not isinstance(part, str) and not (self.path.parent / part["image"]).is_file():
                raise ValueError(f"{self.path} line {number}: there is no picture {part['image']}")
        return value


def _prompt(name: str, value: Mapping[str, Any], folder: Path) -> RLPrompt:
    parts = value["prompt"] if isinstance(value["prompt"], list) else [value["prompt"]]
    return RLPrompt(name=name, prompt=[_part(part, folder) for part in parts], facts=value.get("facts", {}))


def _part(part: Any, folder: Path) -> str | Image.Image:
    return part if isinstance(part, str) else ImageSegment(source=folder / part["image"]).open()
