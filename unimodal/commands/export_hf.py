"""`unimodal export-hf`: a model bundle becomes a folder that Hugging Face's transformers open."""

from __future__ import annotations

from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from unimodal.interop.export import export_hf
from unimodal.model.checkpoint import read_config
from unimodal.terminal import say


def run(source: Path, out: Path) -> int:
    """Export, and say which class opens the folder and what of it is a stand-in."""
    disable_progress_bar()
    architecture = export_hf(source, out)
    if read_config(source).multi_token:
        say("its multi-token heads are left out: no class of transformers has them")
    say(f"{architecture.opened_by} opens {out}")
    if architecture.skipped:
        say("its image encoder is a stand-in of zeros: give it pictures as ids (README.md there)")
    return 0
