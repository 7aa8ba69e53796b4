"""Sources by name: the one list that commands and configs choose from."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipelines.failures import FailureLog
from data_pipelines.sources.coco import CocoCaptions
from data_pipelines.sources.easy_vqa import EasyVQA
from data_pipelines.sources.hf import SavedDataset
from data_pipelines.sources.imagefolder import ImageFolder
from data_pipelines.sources.interleaved import Interleaved
from data_pipelines.sources.noto_emoji import NotoEmoji
from data_pipelines.sources.source import Source
from data_pipelines.sources.text import TextFiles
from data_pipelines.sources.vqav2 import VQAv2
from data_pipelines.sources.webdataset import WebDataset

SOURCES: dict[str, Callable[..., Source]] = {
    "easy_vqa": EasyVQA,
    "imagefolder": ImageFolder,
    "coco": CocoCaptions,
    "vqav2": VQAv2,
    "webdataset": WebDataset,
    "text": TextFiles,
    "interleaved": Interleaved,
    "hf": SavedDataset,
    "noto_emoji": NotoEmoji,
}


def open_source(
    name: str, *, path: Path | None = None, split: str = "train", failures: FailureLog | None = None, **options: Any
) -> Source:
    """Open the source `name`. `options` are those of its class; `failures` decides what damage is bearable.

    Raises ValueError, in one line with the valid choices, for an unknown name or option, a path or split not there.
    """
    if name not in SOURCES:
        raise ValueError(f"unknown source {name!r}; choose one of {', '.join(SOURCES)}")
    source = SOURCES[name]
    valid = [option for option in inspect.signature(source).parameters if option not in ("path", "split", "failures")]
    if unknown := sorted(options.keys() - valid):
        raise ValueError(f"source {name} has no option {unknown[0]!r}; its options are: {', '.join(valid) or 'none'}")
    return source(path=path, split=split, failures=FailureLog() if failures is None else failures, **options)
