"""Prompt files: JSON lines in, JSON lines and pictures out; a run that was killed resumes where it stopped.

A line is an object with `prompt`: a string, or a list of strings, `{"image": FILE}` (beside the prompt file) and
`{"answer": [...]}` for an earlier answer of the model. It may set `id`, `seed`, the options of DecodeSettings, and a
grammar as `json_schema`, `choices`, `regex` or `lark`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from data_pipelines.documents import DamagedSample, ImageSegment
from data_pipelines.outputs import check_folder, check_names_free
from data_pipelines.sources.files import as_utf8
from unimodal.generation.grammars import Choices, Grammar, JSONSchema, Lark, Regex
from unimodal.generation.pipeline import Pipeline
from unimodal.generation.prompts import Answer
from unimodal.generation.requests import Request
from unimodal.generation.settings import OPTIONS, DecodeSettings, chosen

GRAMMARS: dict[str, type[Any]] = {"json_schema": JSONSchema, "choices": Choices, "regex": Regex, "lark": Lark}
ANSWERS = "answers.jsonl"
PICTURE = re.compile(r"[\w.\-]{1,100}-\d+\.png", re.ASCII | re.IGNORECASE)
"""Names of pictures beside the answers."""


@dataclass(frozen=True, kw_only=True)
class PromptLine:
    """A line of a prompt file, checked as far as it can be without a model."""

    id: str
    prompt: str | list[Any]
    settings: DecodeSettings
    seed: int
    folder: Path
    where: str

    def request(self, pipeline: Pipeline) -> Request:
        """The request that it makes. Raises ValueError, with file and line, for what this model cannot do."""
        try:
            parts = self.prompt if isinstance(self.prompt, str) else [self._part(part) for part in self.prompt]
            config = pipeline.decode_config(**chosen(self.settings))
            request = pipeline.requests([parts], config, self.seed)[0]
            pipeline.engine.check(request)
        except (ValueError, TypeError, DamagedSample) as error:
            raise ValueError(f"{self.where}: {error}") from error
        return request

    @property
    def pictures(self) -> list[Path]:
        """The files that the prompt names."""
        parts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        return [self.folder / name for part in parts for name in _named(part)]

    @property
    def digest(self) -> str:
        """SHA-256, in hex, over all that the answer follows from but the model: prompt, pictures, settings, seed."""
        digest = hashlib.sha256(json.dumps([self.prompt, self.seed], sort_keys=True).encode())
        digest.update(repr(sorted(chosen(self.settings).items())).encode())
        for path in self.pictures:
            digest.update(path.read_bytes() if path.is_file() else b"")
        return digest.hexdigest()[:16]

    def _part(self, part: Any) -> Any:
        if isinstance(part, Mapping) and set(part) == {"image"}:
            file = self.folder / str(part["image"])
            if not file.is_file():
                raise ValueError(f"{file} is not a file")
            return ImageSegment(source=file).open()
        if isinstance(part, Mapping) and set(part) == {"answer"} and isinstance(part["answer"], list):
            return [self._part(inner) for inner in part["answer"]]
        if isinstance(part, str):
            return part
        raise ValueError(f'a prompt is made of strings, {{"image": FILE}} and {{"answer": [...]}}, got {part!r}')


def _named(part: Any) -> list[str]:
    """Names of picture files in a part of a prompt."""
    if isinstance(part, Mapping):
        inner = part.get("answer")
        return [str(part["image"])] if "image" in part else _named(inner)
    return [name for each in part for name in _named(each)] if isinstance(part, list) else []


def read_prompts(path: Path, defaults: Mapping[str, Any] | None = None) -> list[PromptLine]:
    """All lines of a prompt file; `defaults` are settings of lines that do not set them.

    Raises ValueError, with file and line, for a line that is no prompt and for an id that comes twice.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    defaults = _settings(defaults or {}, "settings")
    lines: list[PromptLine] = []
    ids: dict[str, str] = {}
    for number, text in enumerate(as_utf8(path.read_bytes()).split(b"\n"), start=1):
        if text.strip():
            line = _line(text, f"{path} line {number}", len(lines), path.parent, defaults)
            if line.id in ids:
                raise ValueError(f"{line.where}: id {line.id!r} is that of {ids[line.id]}")
            ids[line.id] = line.where
            lines.append(line)
    if not lines:
        raise ValueError(f"{path} holds no prompts")
    return lines


def _line(text: bytes, where: str, index: int, folder: Path, defaults: Mapping[str, Any]) -> PromptLine:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON: {error}") from error
    prompt = row.get("prompt") if isinstance(row, dict) else None
    if not isinstance(prompt, str | list) or not prompt:
        raise ValueError(f"{where}: a line is an object with a prompt that is not empty, got {row!r:.60}")
    overrides = {key: value for key, value in row.items() if key not in ("id", "prompt", "seed")}
    name, seed = str(row.get("id", f"{index:06d}")), row.get("seed", index)
    if not re.fullmatch(r"(?!\.)[\w.\-]{1,100}", name, flags=re.ASCII):
        raise ValueError(f"{where}: an id names files: 1 to 100 letters, digits, '_', '-' and '.', got {name[:60]!r}")
    try:
        settings = DecodeSettings(**{**defaults, **_settings(overrides, where)})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return PromptLine(id=name, prompt=prompt, settings=settings, seed=seed, folder=folder, where=where)


def _settings(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What was set, checked by name. Raises ValueError that begins with `where`."""
    unknown = set(given) - set(OPTIONS) - set(GRAMMARS)
    if unknown:
        offered = ", ".join(sorted({*OPTIONS, *GRAMMARS}))
        raise ValueError(f"{where}: no setting is called {sorted(unknown)[0]!r}; there are {offered}")
    try:
        return with_grammar(given)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from error


def with_grammar(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in which `json_schema`, `choices`, `regex` or `lark` has become `grammar`."""
    given = [name for name in GRAMMARS if name in settings]
    if len(given) > 1:
        raise ValueError(f"an answer follows one grammar, got {' and '.join(given)}")
    others = {name: value for name, value in settings.items() if name not in GRAMMARS}
    grammar: Grammar | None = GRAMMARS[given[0]](settings[given[0]]) if given else None
    return others if grammar is None else {**others, "grammar": grammar}


class AnswerFolder:
    """`answers.jsonl` and the pictures beside it. A line comes after its pictures: where it is, they are whole."""

    def __init__(self, folder: Path, name: str = ANSWERS, model: str = "") -> None:
        """`model` is the hash of what answers. Raises ValueError where the folder cannot be written."""
        check_folder(folder)
        self.folder, self.file, self.model = folder, folder / name, model[:16]
        folder.mkdir(parents=True, exist_ok=True)
        self._rows = self._read()

    @property
    def done(self) -> set[str]:
        """Ids of the prompts that are answered."""
        return set(self._rows)

    def left_over(self, lines: Sequence[PromptLine]) -> list[PromptLine]:
        """The lines that have no answer yet.

        Raises ValueError, with the first difference, where the folder holds answers of another model, prompt or
        setting, and where a picture that is written would take the place of one that is read.
        """
        check_names_free(self.folder, PICTURE, [path for line in lines for path in line.pictures])
        known = {line.id: line for line in lines}
        for name, row in self._rows.items():
            if name not in known:
                raise self._of_another_job(f"answer {name!r} has no prompt now")
            if row.get("model") != self.model:
                raise self._of_another_job(f"answer {name!r} is another model's")
            if row.get("request") != known[name].digest:
                raise self._of_another_job(f"prompt, pictures, settings or seed of {name!r} were others")
        return [line for line in lines if line.id not in self._rows]

    def _of_another_job(self, difference: str) -> ValueError:
        return ValueError(f"{self.file} holds answers of another job: {difference}; give another folder or remove it")

    def _read(self) -> dict[str, dict[str, Any]]:
        """Whole lines by id; the rest of a line that a kill cut off is removed."""
        if not self.file.exists():
            return {}
        content = self.file.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            self.file.write_bytes(whole)
        try:
            return {row["id"]: row for row in map(json.loads, whole.splitlines())}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.file} holds a line that is no answer: {error}") from error

    def write(self, line: PromptLine, answer: Answer) -> None:
        """One answer: pictures first, then its line."""
        parts: list[Any] = []
        for number, part in enumerate(answer):
            if isinstance(part, Image.Image):
                name = f"{line.id}-{number}.png"
                part.save(self.folder / name)
                parts.append({"image": name})
            else:
                parts.append(part)
        row = {"id": line.id, "answer": parts, "finish": answer.finish, "seed": line.seed}
        row |= {"model": self.model, "request": line.digest}
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._rows[line.id] = row

    def put_in_order(self, lines: Sequence[PromptLine]) -> None:
        """Bring the answers into the order of their prompts, in which an unbroken run and a resumed one agree."""
        if self._rows:
            order = {line.id: index for index, line in enumerate(lines)}
            rows = self.file.read_bytes().splitlines(keepends=True)
            rows.sort(key=lambda row: order.get(json.loads(row)["id"], len(order)))
            whole = self.file.with_suffix(".tmp")
            whole.write_bytes(b"".join(rows))
            whole.replace(self.file)
