"""Shards that lie elsewhere: any address fsspec knows. Their manifest and what lies beside them is copied whole, the
shards one by one into a bounded cache (cache.py), as they are read."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from data_pipelines.deferred import Deferred
from data_pipelines.shards.cache import LOCK, CachedFile, ShardCache, gib_text
from data_pipelines.shards.fetching import exclusive, fetch_if_there, read_small
from data_pipelines.shards.format import MANIFEST_FILE, DamagedShard, Manifest, ShardEntry, TokenDocument
from data_pipelines.shards.locations import Locations
from data_pipelines.shards.reader import Shard, open_manifest
from data_pipelines.shards.writer import write_whole

INDEX, INDEX_VERSION = "index", 1
DEFAULT_CACHE = Path("~/.cache/unimodal/shards")
DEFAULT_CACHE_GIB = 100.0
BESIDE = (
    "text_tokenizer/tokenizer.json",
    "image_tokenizer/config.json",
    "image_tokenizer/model.safetensors",
    "autoencoder/config.json",
    "autoencoder/model.safetensors",
    "autoencoder/diffusion_pytorch_model.safetensors",
)
"""Files of tokenizers and autoencoders that may lie beside shards; training puts them into its bundle."""


class RemoteShard(Shard):
    """A shard whose documents hold nothing of its file: ids are copied, media are read again when they are used."""

    def document(self, index: int) -> TokenDocument:
        """One document."""
        document = super().document(index)
        segments = [
            replace(
                segment,
                ids=np.array(segment.ids),
                media={
                    name: Deferred(values.shape, partial(self._media, index, number, name))
                    for name, values in segment.media.items()
                },
            )
            for number, segment in enumerate(document.segments)
        ]
        return replace(document, segments=tuple(segments))

    def _media(self, index: int, segment: int, name: str) -> np.ndarray:
        return np.array(super().document(index).segments[segment].media[name])


def is_remote(address: str) -> bool:
    """Whether an address is not a folder of this machine."""
    return "://" in address


def folder_of(address: str, cache: Path) -> Path:
    """The folder on this machine for what an address holds; a local folder is its own."""
    if not is_remote(address):
        return Path(address)
    return cache.expanduser() / hashlib.sha256(address.rstrip("/").encode()).hexdigest()[:16]


def local_folder(address: str, cache: Path) -> Path:
    """A folder on this machine with manifest and tokenizers of `address`, fetched now; a local folder is its own.

    Raises ValueError for an address that cannot be read, DamagedShard for a manifest that leads elsewhere.
    """
    folder = folder_of(address, cache)
    if is_remote(address):
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder / LOCK):
            _bring_up_to_date(address.rstrip("/"), folder)
    return folder


def open_shards(address: str, folder: Path, manifest: Manifest, cache: ShardCache) -> list[Shard]:
    """The shards of an address whose manifest lies in `folder`. Those elsewhere are fetched when they are read.

    A remote shard is verified once by a machine, which keeps the locations of its documents beside it. Raises what
    Shard raises, and ValueError for one that cannot be fetched.
    """
    if not is_remote(address):
        return [Shard(folder, entry, manifest) for entry in manifest.shards]
    return [
        _remote_shard(f"{address.rstrip('/')}/{each.name}", folder, each, manifest, cache) for each in manifest.shards
    ]


def check_cache(shards: Sequence[Sequence[Shard]], together: int, cache: ShardCache) -> None:
    """Raise ValueError for a cache that cannot hold the shards among which documents are shuffled, and those after."""
    sizes = [[shard.file.size for shard in each if isinstance(shard.file, CachedFile)] for each in shards]
    needed = sum(sum(sorted(group, reverse=True)[: 2 * together]) for group in sizes)
    if needed > cache.max_bytes:
        raise ValueError(
            f"the cache of {cache.stated} does not hold twice the {together} shards among which documents are shuffled "
            f"({gib_text(needed)}): raise data.max_cache_gib, or lower data.stream.shards_together"
        )


def _bring_up_to_date(address: str, folder: Path) -> None:
    """Fetch the manifest and what lies beside the shards, and remove what no longer does."""
    write_whole(folder / MANIFEST_FILE, read_small(f"{address}/{MANIFEST_FILE}"))
    for entry in open_manifest(folder).shards:
        if Path(entry.name).name != entry.name or not entry.name.endswith(".tar"):
            raise DamagedShard(f"{address}: the manifest names {entry.name!r}, which leads out of its folder")
    for name in BESIDE:
        path = folder / name
        partial = path.with_name(f"{path.name}.partial")
        path.parent.mkdir(exist_ok=True)
        if fetch_if_there(f"{address}/{name}", partial):
            os.replace(partial, path)
        else:
            path.unlink(missing_ok=True)
            partial.unlink(missing_ok=True)
    for name in {Path(name).parent for name in BESIDE}:
        if not any((folder / name).iterdir()):
            (folder / name).rmdir()


def _remote_shard(address: str, folder: Path, entry: ShardEntry, manifest: Manifest, cache: ShardCache) -> Shard:
    """Of several processes the first verifies a shard and writes its index, the others read that."""
    file = CachedFile(cache, address, folder / entry.name, entry.sha256)
    made_of = f"{INDEX_VERSION} {entry.sha256} {manifest.fingerprint} {manifest.media} {manifest.format_version}"
    path = folder / INDEX / f"{entry.name}.{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.npz"
    with exclusive(folder / INDEX / f"{entry.name}.lock"):
        if (known := _read_index(path)) is not None:
            file.size = known[1]
            return RemoteShard(folder, entry, manifest, file, known[0])
        shard = RemoteShard(folder, entry, manifest, file)
        buffer = io.BytesIO()
        np.savez(buffer, size=file.size, **shard.locations.to_arrays())  # pyright: ignore[reportArgumentType]
        write_whole(path, buffer.getvalue())
    return shard


def _read_index(path: Path) -> tuple[Locations, int] | None:
    """Locations and bytes of a shard; None where it the index is not there, or damaged: it is made again then."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return Locations.from_arrays(dict(arrays)), int(arrays["size"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
