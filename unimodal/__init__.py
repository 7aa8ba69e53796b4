"""unimodal: any-to-any image and text models on discrete tokens, from tokenizer training to evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from unimodal.generation.pipeline import Pipeline

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    compile: bool = False,
    packed: bool = True,
) -> Pipeline:
    """Open a model bundle to talk with it; see `unimodal.generation.pipeline.load`."""
    from unimodal.generation.pipeline import load as open_pipeline

    return open_pipeline(path, dtype=dtype, device=device, compile=compile, packed=packed)
