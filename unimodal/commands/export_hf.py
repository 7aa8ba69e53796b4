"""`unimodal export-hf`: a model bundle becomes a folder that Hugging Face's transformers open."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from unimodal.interop.export import export_hf


def run(source: Path, out: Path) -> int:
    """Export, and say which class opens the folder and what of it is a stand-in."""
    disable_progress_bar()
    console = Console()
    architecture = export_hf(source, out)
    console.print(f"{architecture.opened_by} opens {out}", highlight=False)
    if architecture.skipped:
        console.print(
            "its image encoder is a stand-in of zeros: give it pictures as ids (README.md there)", highlight=False
        )
    return 0
