"""`unimodal generate`: text and pictures from text and pictures."""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image

from data_pipelines.documents import ImageSegment
from data_pipelines.outputs import check_folder, check_names_free
from unimodal.generation.events import Ended, Event, ImageDone, ImageRows, TextPiece
from unimodal.generation.grammars import Choices, Grammar, JSONSchema, Regex
from unimodal.generation.options import from_arguments
from unimodal.generation.pipeline import load
from unimodal.generation.prompts import Answer
from unimodal.generation.requests import Finish
from unimodal.generation.settings import DecodeSettings, chosen
from unimodal.progress import progress_bar
from unimodal.terminal import counted, say

PARTIAL = "so-far.png"
WRITTEN = re.compile(r"\d{3,}-\d+\.png|so-far\.png|answer\.txt", re.IGNORECASE)
"""Names that this command writes."""


def run(options: argparse.Namespace) -> int:
    """Write pictures and answer.txt into the out folder, and print the texts."""
    pictures = [ImageSegment(source=_existing(path)).open() for path in options.image]
    prompt = [*pictures, *([options.prompt] if options.prompt else [])]
    if not prompt:
        raise ValueError("give --prompt, --image or both")
    if options.number < 1:
        raise ValueError(f"--number is at least 1, got {options.number}")
    if options.stream and options.think:
        raise ValueError("--think draws when the plan is there, --stream shows what comes: give one of them")
    if options.stream and options.number != 1:
        raise ValueError(f"--stream shows one answer, --number asks for {options.number}")
    settings = chosen(from_arguments(options, DecodeSettings(), grammar=_grammar(options)))
    check_folder(options.out)
    check_names_free(options.out, WRITTEN, [*options.image, *filter(None, [options.json_schema])])
    dtype = getattr(torch, options.dtype) if options.dtype else None
    model = load(options.model, dtype=dtype, device=options.device, compile=options.compile, drafts=options.drafts)
    started = time.perf_counter()
    if options.stream:
        answers = [_show(model.generate([prompt], stream=True, seed=options.seed, **settings), options.out)]
    else:
        with progress_bar("answers", options.number, unit="answers") as progress:
            answers = model.generate(
                [prompt] * options.number, seed=options.seed, progress=progress, think=options.think, **settings
            )
    options.out.mkdir(parents=True, exist_ok=True)
    lines = [line for index, answer in enumerate(answers) for line in _write(answer, index, options.out)]
    (options.out / "answer.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for answer in answers:
        if answer.finish == "no room for an image":
            say("an answer ended because there was no room for an image")
    for line in [] if options.stream else lines:
        say(line)
    say(f"{counted(len(answers), 'answer')} in {time.perf_counter() - started:.1f} s -> {options.out}")
    return 0


def _grammar(options: argparse.Namespace) -> Grammar | None:
    if options.json_schema is not None:
        try:
            return JSONSchema(json.loads(_existing(options.json_schema).read_text(encoding="utf-8-sig")))
        except ValueError as error:
            raise ValueError(f"{options.json_schema}: {error}") from error
    if options.choices is not None:
        return Choices(options.choices)
    return Regex(options.regex) if options.regex is not None else None


def _show(events: Iterator[Event], out: Path) -> Answer:
    """Print an answer as it comes; a picture's upper rows lie in the out folder while it is drawn."""
    out.mkdir(parents=True, exist_ok=True)
    parts: list[str | Image.Image] = []
    finish: Finish = "end"

    for event in events:
        if isinstance(event, TextPiece):
            say(event.text, end="")
            before = parts.pop() if parts and isinstance(parts[-1], str) else ""
            parts.append(f"{before}{event.text}")
        elif isinstance(event, ImageRows):
            event.image.save(out / PARTIAL)
        elif isinstance(event, ImageDone):
            say(f"[{_name(0, len(parts))}]", end="")
            parts.append(event.image)
        elif isinstance(event, Ended):
            finish = event.finish
    say("")
    (out / PARTIAL).unlink(missing_ok=True)
    return Answer(parts, finish=finish)


def _name(index: int, number: int) -> str:
    return f"{index:03d}-{number}.png"


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    return path


def _write(answer: Answer, index: int, out: Path) -> list[str]:
    lines = []
    for number, part in enumerate(answer):
        if isinstance(part, Image.Image):
            name = _name(index, number)
            part.save(out / name)
            lines.append(f"[{name}]")
        else:
            lines.append(part)
    return lines or ["(an empty answer)"]
