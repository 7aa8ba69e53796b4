"""Results files: a score with everything that is needed to get it again."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from data_pipelines.outputs import check_file, check_folder
from unimodal.evaluation.contract import Example, TaskResult

PACKAGES = ("torch", "torchvision", "transformers", "tokenizers", "vector-quantize-pytorch", "torchmetrics", "numpy")
PACKAGES += ("pillow", "safetensors", "easy-vqa")
UNKNOWN = "unknown"
EXAMPLE = re.compile(r"\d{3,}_\w+\.png")
"""Names of the examples' pictures."""


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


def check_results_place(out: Path) -> None:
    """Raise ValueError, before the work, where results cannot be written or would overwrite what are no results."""
    check_file(out)
    if out.exists() and not _holds_results(out):
        raise ValueError(f"{out} is there already and no results file: name another")
    folder = examples_folder(out)
    check_folder(folder)
    foreign = [path.name for path in folder.iterdir() if not EXAMPLE.fullmatch(path.name)] if folder.exists() else []
    if foreign:
        raise ValueError(f"{folder} holds {sorted(foreign)[0]}, which would be lost: name another results file")


def _holds_results(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"task", "metrics"} <= content.keys()


def examples_folder(out: Path) -> Path:
    """Where the examples' pictures lie beside a results file."""
    return out.with_name(f"{out.stem}_examples")


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
    folder = examples_folder(out)
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
