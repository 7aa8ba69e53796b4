"""Writes token shards: plain tar files, whole or not at all, the manifest last."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from data_pipelines.outputs import check_folder
from data_pipelines.shards.format import MANIFEST_FILE, Manifest, ShardEntry, TokenDocument, has_parts
from data_pipelines.shards.media import stored_media
from tokenizers_vq.media import MediaSpec
from tokenizers_vq.token_space import TokenSpace

PARTIAL_SUFFIX = ".partial"
SHARD = re.compile(r"\d{6,}\.tar", re.IGNORECASE)
"""Names that shards get."""


class ShardWriter:
    """A context manager that takes TokenDocuments and leaves `000000.tar, ..., manifest.json` in a folder."""

    def __init__(
        self,
        folder: Path,
        space: TokenSpace,
        *,
        image_policy: dict[str, Any],
        source: dict[str, Any],
        media: Mapping[str, MediaSpec] | None = None,
        documents_per_shard: int = 1000,
    ) -> None:
        """media: what may lie beside the ids of images; nothing if not given."""
        check_unwritten(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.space = folder, space
        self.image_policy, self.source = image_policy, source
        self.media, self.documents_per_shard = dict(media or {}), documents_per_shard
        self.entries: list[ShardEntry] = []
        self.skipped: dict[str, int] = {}
        self._pending: list[TokenDocument] = []
        self._keys: set[str] = set()

    def __enter__(self) -> ShardWriter:
        return self

    def write(self, document: TokenDocument) -> None:
        """Add one document. Raises ValueError for a key that was there before or holds a dot.

        In a webdataset tar, the first dot parts a key from what its member is.
        """
        if document.key in self._keys or "." in document.key:
            raise ValueError(f"a document's key occurs once and holds no dot, got {document.key!r}")
        self._keys.add(document.key)
        self._pending.append(document)
        if len(self._pending) == self.documents_per_shard:
            self._flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
            self._write_manifest()

    def _flush(self) -> None:
        if not self._pending:
            return
        self.entries.append(write_shard(self.folder, len(self.entries), self._pending, self.space, self.media))
        self._pending = []

    def _write_manifest(self) -> None:
        manifest = Manifest(
            token_space=self.space.to_dict(),
            fingerprint=self.space.fingerprint,
            image_policy=self.image_policy,
            source=self.source,
            shards=tuple(self.entries),
            skipped=self.skipped,
            media=self.media,
        )
        write_manifest(self.folder, manifest)


def check_unwritten(folder: Path) -> None:
    """Raises ValueError where a folder already holds shards, or anything that a new job would overwrite.

    What an interrupted job left is no obstacle: its parts say that it is one of ours.
    """
    check_folder(folder)
    if (folder / MANIFEST_FILE).exists():
        raise ValueError(f"{folder} already holds shards; give another folder or remove it")
    if not has_parts(folder):
        for path in sorted(folder.glob("*.tar")):
            if SHARD.fullmatch(path.name):
                raise ValueError(f"{path} is there already and would be overwritten; give another folder")


def write_shard(
    folder: Path,
    index: int,
    documents: Sequence[TokenDocument],
    space: TokenSpace,
    media: Mapping[str, MediaSpec],
) -> ShardEntry:
    """Write documents as shard number `index` of a folder, and return its line for the manifest.

    Raises ValueError for a document with media that `media` does not name.
    """
    name, data = f"{index:06d}.tar", _tar(documents, space, media)
    write_whole(folder / name, data)
    return ShardEntry(
        name=name,
        sha256=hashlib.sha256(data).hexdigest(),
        documents=len(documents),
        text_tokens=sum(document.count("text") for document in documents),
        image_tokens=sum(document.count("image") for document in documents),
    )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the file that makes a folder of shards data; it comes last."""
    write_whole(folder / MANIFEST_FILE, json.dumps(manifest.to_dict(), indent=2).encode())


def write_whole(path: Path, data: bytes) -> None:
    """The file is there with all its bytes, on the disk, or not at all. Many processes may write the same file."""
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL_SUFFIX}")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)


def _tar(documents: Iterable[TokenDocument], space: TokenSpace, media: Mapping[str, MediaSpec]) -> bytes:
    dtype = np.uint16 if space.vocab_size <= 2**16 else np.uint32
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for document in documents:
            ids = np.concatenate([segment.ids for segment in document.segments]).astype(dtype)
            _add(tar, f"{document.key}.ids.npy", _npy(ids))
            for member, stored in sorted(stored_media(document, media).items()):
                _add(tar, f"{document.key}.{member}.npy", _npy(stored))
            _add(tar, f"{document.key}.json", json.dumps(_describe(document)).encode())
    return buffer.getvalue()


def _describe(document: TokenDocument) -> dict[str, Any]:
    segments, start = [], 0
    for segment in document.segments:
        length = len(segment.ids)
        described: dict[str, Any] = {"kind": segment.kind, "role": segment.role, "start": start, "length": length}
        described |= {name: list(values.shape[:2]) for name, values in sorted(segment.media.items())}
        segments.append(described)
        start += length
    return {"segments": segments, "meta": dict(document.meta)}


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)  # row by row, as it is read
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
