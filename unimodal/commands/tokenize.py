"""`unimodal tokenize`: documents of a source become token shards."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from rich.table import Table

from data_pipelines.failures import FailureLog
from data_pipelines.images import Augmentation
from data_pipelines.media_makers import LatentsMaker, MediaMaker, PatchesMaker
from data_pipelines.outputs import check_apart
from data_pipelines.shards.format import has_parts
from data_pipelines.shards.reader import open_manifest
from data_pipelines.shards.writer import check_unwritten
from data_pipelines.sources.registry import Source, open_source
from data_pipelines.tokenize import TokenizeConfig, TokenizeHooks, layout_of, tokenize, train_text_tokenizer
from tokenizers_vq.autoencoder import open_autoencoder
from tokenizers_vq.bundle_files import AUTOENCODER, IMAGE_TOKENIZER, TEXT_TOKENIZER, Tokenizers
from tokenizers_vq.image_tokenizer import ImageTokenizer
from tokenizers_vq.media import PatchSpec
from tokenizers_vq.text import TextTokenizer
from unimodal.devices import usable_device
from unimodal.progress import progress_bar
from unimodal.terminal import open_console, say

AUGMENTATIONS = ("flip", "place")


def run(options: argparse.Namespace) -> int:
    """Tokenize, with the tokenizers beside the shards. A killed command resumes when it is given again."""
    config = TokenizeConfig(
        copies=options.copies,
        augmentations=_augmentations(options.augment),
        seed=options.seed,
        aspect_ratio=options.aspect_ratio,
        source_options=dict(options.option),
        documents_per_shard=options.documents_per_shard,
        workers=options.workers,
        images_at_once=options.images_at_once,
        rank=options.rank,
        world_size=options.world_size,
    )
    _check_out(options)
    device = usable_device(options.device)
    image = ImageTokenizer.open(options.image_tokenizer).to(device)
    media = _media(options, device)
    layout_of(image, config.aspect_ratio)  # refuses an impossible ratio before anything is trained or written
    text = _text_tokenizer(options)
    failures = FailureLog(limit=options.max_bad)
    source = _source(options, failures)

    autoencoder = next((maker.autoencoder for maker in media if isinstance(maker, LatentsMaker)), None)
    tokenizers = Tokenizers(text, image, autoencoder)
    total = len(source) * config.copies if hasattr(source, "__len__") else None
    with progress_bar(f"tokenize {options.source} {options.split}", total, unit="documents") as report:
        hooks = TokenizeHooks(started=partial(tokenizers.save, options.out), progress=report)
        whole = tokenize(source, text, image, options.out, failures, config, media, hooks)
    if whole:
        _print_summary(options.out)
    else:
        say(f"rank {config.rank} of {config.world_size} is done; the last rank to end writes the manifest")
    return 0


def _check_out(options: argparse.Namespace) -> None:
    """Raise ValueError where the shards cannot be written, or would take the place of what is read or was there."""
    given = (options.path, options.image_tokenizer, options.autoencoder, options.text_tokenizer)
    check_apart(options.out, given, "give the shards a folder of their own")
    check_unwritten(options.out)
    if has_parts(options.out):
        return
    for name in (TEXT_TOKENIZER, IMAGE_TOKENIZER, AUTOENCODER):
        place = options.out / name
        if place.exists() and place.resolve() not in [path.resolve() for path in given if path is not None]:
            raise ValueError(f"{place} is there already and would be overwritten; give another folder")


def _media(options: argparse.Namespace, device: torch.device) -> list[MediaMaker]:
    """What is to lie beside the codes."""
    makers: list[MediaMaker] = []
    if options.autoencoder is not None:
        makers.append(LatentsMaker(open_autoencoder(options.autoencoder).to(device)))
    if options.patch is not None:
        makers.append(PatchesMaker(PatchSpec.of(options.patch, options.max_patches)))
    elif options.max_patches is not None:
        raise ValueError("--max-patches goes with --patch, which keeps patches for a ViT")
    return makers


def _augmentations(text: str) -> tuple[Augmentation, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in names if name not in AUGMENTATIONS]
    if unknown:
        raise ValueError(f"unknown augmentation {unknown[0]!r}; choose from {', '.join(AUGMENTATIONS)}")
    return cast("tuple[Augmentation, ...]", names)


def _source(options: argparse.Namespace, failures: FailureLog) -> Source:
    chosen = dict(options.option)
    return open_source(options.source, path=options.path, split=options.split, failures=failures, **chosen)


def _text_tokenizer(options: argparse.Namespace) -> TextTokenizer:
    if options.text_tokenizer is not None:
        return TextTokenizer.open(options.text_tokenizer)
    source = _source(options, FailureLog(limit=1.0, loud=False))
    text = train_text_tokenizer(source, options.text_vocabulary)
    say(f"trained a byte-level BPE of {text.size} ids on the texts of {options.source} {options.split}")
    return text


def _print_summary(folder: Path) -> None:
    manifest = open_manifest(folder)
    table = Table("shard", "documents", "text tokens", "image tokens", title=str(folder))
    for entry in manifest.shards:
        table.add_row(entry.name, f"{entry.documents:,}", f"{entry.text_tokens:,}", f"{entry.image_tokens:,}")
    open_console().print(table)
    counts: dict[str, Any] = {**manifest.source.get("notes", {}), **manifest.skipped}
    for reason, count in counts.items():
        say(f"{count:,} {reason}")
