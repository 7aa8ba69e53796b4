"""`unimodal inspect`: verify shards or a bundle, and print what they hold."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from rich.table import Table

from data_pipelines.outputs import check_file
from data_pipelines.shards import DamagedShard, Manifest, open_manifest, read_shard
from data_pipelines.shards.format import MANIFEST_FILE
from tokenizers_vq.layout import Layout
from unimodal.bundle import Bundle
from unimodal.report import write_documents
from unimodal.terminal import open_console, say


def run(path: Path, page: Path | None = None, documents: int = 24) -> int:
    """0 when all is well, 1 on any damage; undamaged shards are shown on `page`."""
    if not path.is_dir():
        raise ValueError(f"{path} is not a folder")
    if not (path / MANIFEST_FILE).exists() and not any(path.glob("*.tar")):
        if page is not None:
            raise ValueError(f"{path} holds no shards: a page of documents cannot be made of it")
        return _bundle(path)
    if page is not None:
        check_file(page)
        if page.exists() and page.suffix.lower() not in (".html", ".htm"):
            raise ValueError(f"{page} is there already and no page: name another file")
    code = _shards(path)
    if page is not None and code == 0:
        write_documents(path, page, documents)
        say(f"open {page}")
    return code


def _shards(folder: Path) -> int:
    try:
        manifest = open_manifest(folder)
    except DamagedShard as error:
        return _damaged([str(error)])
    problems: list[str] = []
    table = Table("shard", "documents", "text tokens", "image tokens", "state", title=str(folder))
    for entry in manifest.shards:
        state = "whole"
        try:
            found = _count(folder, manifest, entry.name)
            stated = (entry.documents, entry.text_tokens, entry.image_tokens)
            if found != stated:
                raise DamagedShard(f"{folder / entry.name}: the manifest counts {stated}, the shard holds {found}")
        except DamagedShard as error:
            state = "damaged"
            problems.append(str(error))
        counts = (entry.documents, entry.text_tokens, entry.image_tokens)
        table.add_row(entry.name, *(f"{count:,}" for count in counts), state)
    open_console().print(table)
    listed = {entry.name for entry in manifest.shards}
    problems += [f"{tar} is not in the manifest" for tar in sorted(folder.glob("*.tar")) if tar.name not in listed]
    return _damaged(problems) if problems else 0


def _count(folder: Path, manifest: Manifest, name: str) -> tuple[int, int, int]:
    entry = next(entry for entry in manifest.shards if entry.name == name)
    totals: Counter[str] = Counter()
    for document in read_shard(folder, entry, manifest):
        totals.update(documents=1, text=document.count("text"), image=document.count("image"))
    return totals["documents"], totals["text"], totals["image"]


def _bundle(folder: Path) -> int:
    if problems := Bundle.verify(folder):
        return _damaged(problems)
    bundle = Bundle.open(folder)
    space, config, trunk = bundle.space, bundle.model.config, bundle.model.config.trunk
    table = Table("part", "what it is", title=str(folder))
    table.add_row("trunk", f"{trunk.num_layers} layers of {trunk.dim}, {trunk.num_heads} heads")
    table.add_row("parameters", f"{sum(parameter.numel() for parameter in bundle.model.parameters()):,}")
    table.add_row("context", f"{trunk.max_length} tokens")
    table.add_row("text ids", f"{space.text_size}")
    table.add_row("image codes", f"{space.codebook_size}, {_sizes(space.layout)}")
    if config.flow and bundle.tokenizers.autoencoder:
        experts = "two experts" if trunk.mixture else "one expert"
        about = (
            f"{config.flow.grid_size}x{config.flow.grid_size} latents of {config.flow.latent_dim} channels, {experts}"
        )
        table.add_row("flow branch", about)
        table.add_row("autoencoder", bundle.tokenizers.autoencoder.hash[:16])
    table.add_row("token space", space.fingerprint[:16])
    table.add_row("weights", bundle.sha256[:16])
    open_console().print(table)
    return 0


def _sizes(layout: Layout) -> str:
    widest, tallest = (f"{rows}x{columns}" for rows, columns in (layout.sizes[0], layout.sizes[-1]))
    return f"{widest} an image" if widest == tallest else f"{len(layout.sizes)} sizes of image, {widest} to {tallest}"


def _damaged(problems: list[str]) -> int:
    for problem in problems:
        print(f"unimodal inspect: {problem}", file=sys.stderr)
    return 1
