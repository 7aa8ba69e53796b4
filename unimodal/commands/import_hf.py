"""`unimodal import-hf`: a local folder of Hugging Face's transformers becomes a model bundle."""

from __future__ import annotations

from pathlib import Path

from unimodal.interop.importing import import_hf
from unimodal.terminal import say


def run(source: Path, out: Path, image_tokenizer: Path | None) -> int:
    """Import, and print what was found, made and skipped."""
    done = import_hf(source, out, image_tokenizer)
    ids = f"{done.space.text_size:,} text ids and {done.space.codebook_size:,} image codes"
    lines = [f"a {done.architecture} with {ids} -> {out}"]
    if image_tokenizer is not None:
        known = [f"{ours} was {theirs}" for ours, theirs in done.found.items()]
        lines.append(f"special tokens known there: {', '.join(known) or 'none'}; rows of image codes are untrained")
    if done.also_end:
        lines.append(f"an answer ends at <eos> and at {', '.join(done.also_end.values())}")
    if done.skipped:
        lines.append(f"{done.skipped:,} weights of its image encoder were left out")
    for line in lines:
        say(line)
    return 0
