"""unimodal: any-to-any image and text models on discrete tokens, from tokenizer training to evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unimodal.generation.pipeline import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """`load`, imported when it is asked for: with it comes torch, which takes seconds."""
    if name == "load":
        from unimodal.generation.pipeline import load

        return load
    raise AttributeError(f"module 'unimodal' has no attribute {name!r}")
