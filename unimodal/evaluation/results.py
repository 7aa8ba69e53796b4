"""Results files: a score with everything that is needed to get it again."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from unimodal.evaluation.contract import Example, TaskResult

PACKAGES = ("torch", "torchvision", "transformers", "tokenizers", "vector-quantize-pytorch", "torchmetrics", "numpy")
PACKAGES += ("pillow", "safetensors", "easy-vqa")
UNKNOWN = "unknown"


def write_results(
    result: TaskResult, out: Path, *, model: dict[str, str], data: dict[str, Any], command: str = ""
) -> dict[str, Any]:
    """Write `out`, whole or not at all, and the examples' pictures into a folder beside it; returns what was written.

    model: path and sha256. data: source, split, sha256, limit. command: what a reader types to get the score again.
    """
    content = {
        "task": result.task,
        "metrics": result.metrics,
        "n": result.n,
        "seconds": round(result.seconds, 3),
        "recipe": result.recipe,
        "model": model,
        "data": data,
        "software": software(),
        "command": command,
        "examples": _write_examples(result.examples, out),
    }
    _write_atomically(out, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return content


def software() -> dict[str, str]:
    """Versions of what computes the scores, and the commit of this code, with `-dirty` for changes on top."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = UNKNOWN
    return found | {"commit": _commit()}


def _commit() -> str:
    """The commit of the checkout this file is tracked in; unknown without git or outside of one."""
    here = Path(__file__).resolve()
    git = ["git", "-C", str(here.parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", here.name], check=True, capture_output=True, timeout=10)
        describe = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(describe, check=True, capture_output=True, text=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN


def _write_examples(examples: list[Example], out: Path) -> list[dict[str, Any]]:
    """Pictures become PNG files in `STEM_examples/`; their paths are relative to the results file."""
    folder = out.with_name(f"{out.stem}_examples")
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return [_write_example(example, folder, index) for index, example in enumerate(examples)]


def _write_example(example: Example, folder: Path, index: int) -> dict[str, Any]:
    images = {}
    for name, image in example.images.items():
        file = folder / f"{index:03d}_{name}.png"
        image.save(file)
        images[name] = f"{folder.name}/{file.name}"
    return {
        "prompt": example.prompt,
        "answer": example.answer,
        "reference": example.reference,
        "right": example.right,
        "images": images,
    }


def _write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
