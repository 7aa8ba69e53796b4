"""Kills `unimodal tokenize` at random moments and starts it again: the shards must be those of an unbroken run.

python -m tests.kill.tokenization --kills 20
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.kill.options import kill_options
from tests.oracles.pictures import noise, sharp_tokenizer

PICTURES = 240
DAMAGED = (17, 118)


def make_data(folder: Path) -> list[str]:
    """Pictures, two of them damaged, and a tokenizer; the arguments of `unimodal tokenize` up to --out."""
    data = folder / "data"
    data.mkdir(parents=True)
    rows = []
    for index in range(PICTURES):
        file = data / f"{index}.png"
        if index in DAMAGED:
            file.write_bytes(b"\x89PNG but nothing more")
        else:
            noise(96, 64, seed=index).save(file)
        rows.append({"file_name": file.name, "text": f"picture number {index}"})
    (data / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    sharp_tokenizer().save(folder / "tokenizer")
    settings = ["--copies", "8", "--augment", "flip,place", "--documents-per-shard", "64", "--workers", "2"]
    paths = ["--path", str(data), "--image-tokenizer", str(folder / "tokenizer")]
    return ["tokenize", "--source", "imagefolder", *paths, *settings]


def kill_and_resume(folder: Path, kills: int, seed: int) -> dict[str, float]:
    """`kills` SIGKILLs over as many jobs as it takes, each job then run to its end and compared.

    Raises AssertionError where a single byte differs.
    """
    arguments, rng = make_data(folder), random.Random(seed)
    unbroken = _run([*arguments, "--out", str(folder / "unbroken")])
    assert unbroken is not None
    expected = contents(folder / "unbroken")
    done = jobs = whole_shards = 0
    while done < kills:
        out = folder / f"broken{jobs}"
        jobs += 1
        for _ in range(rng.randint(1, 5)):
            if done < kills and _run([*arguments, "--out", str(out)], rng.uniform(0.2, 1.0) * unbroken) is None:
                done += 1
                whole_shards += len(list(out.glob("*.tar")))
            if (out / "manifest.json").exists():
                break
        if not (out / "manifest.json").exists():
            _run([*arguments, "--out", str(out)])
        assert contents(out) == expected, f"{out} is not what an unbroken run writes"
        shutil.rmtree(out)
    return {"kills": done, "jobs": jobs, "shards": len(expected) - 4, "whole_shards_at_kills": whole_shards}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, without what a killed write left behind."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.suffix != ".partial")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def _run(arguments: Sequence[str], kill_after: float | None = None) -> float | None:
    """Seconds the command took, or None when it was killed on the way."""
    started = time.perf_counter()
    command = [sys.executable, "-c", "from unimodal.cli import main; main()", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _, errors = process.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return None
    assert process.returncode == 0, errors
    return time.perf_counter() - started


def main() -> None:
    options = kill_options(__doc__, kills=20)
    with tempfile.TemporaryDirectory() as folder:
        told = kill_and_resume(Path(folder), options.kills, options.seed)
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
