"""`unimodal generate`: text and pictures from text and pictures."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from PIL import Image
from rich.console import Console

from data_pipelines.documents import ImageSegment
from unimodal.generation.pipeline import load
from unimodal.generation.prompts import Answer


def run(options: argparse.Namespace) -> int:
    """Write pictures and answer.txt into the out folder, and print the texts."""
    console = Console()
    pictures = [ImageSegment(source=_existing(path)).open() for path in options.image]
    prompt = [*pictures, *([options.prompt] if options.prompt else [])]
    if not prompt:
        raise ValueError("give --prompt, --image or both")
    if options.number < 1:
        raise ValueError(f"--number is at least 1, got {options.number}")
    model = load(options.model)
    started = time.perf_counter()
    answers = model.generate(
        [prompt] * options.number,
        mode=options.mode,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        guidance=options.guidance,
        seed=options.seed,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    lines = [line for index, answer in enumerate(answers) for line in _write(answer, index, options.out)]
    (options.out / "answer.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for line in lines:
        console.print(line, highlight=False, markup=False)
    console.print(f"{len(answers)} answers in {time.perf_counter() - started:.1f} s -> {options.out}", highlight=False)
    return 0


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    return path


def _write(answer: Answer, index: int, out: Path) -> list[str]:
    lines = []
    for number, part in enumerate(answer):
        if isinstance(part, Image.Image):
            name = f"{index:03d}-{number}.png"
            part.save(out / name)
            lines.append(f"[{name}]")
        else:
            lines.append(part)
    return lines or ["(an empty answer)"]
