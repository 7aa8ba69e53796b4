"""Reads token shards: nothing is trusted that the manifest does not vouch for."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.shards.format import MANIFEST_FILE, DamagedShard, Manifest, ShardEntry, TokenDocument, TokenSegment
from tokenizers_vq.token_space import TokenSpace


def open_manifest(folder: Path) -> Manifest:
    """The manifest of a folder of shards. Raises DamagedShard where there is none or it does not match itself."""
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise DamagedShard(f"{folder} holds no {MANIFEST_FILE}: it is not a folder of token shards, or not a whole one")
    try:
        manifest = Manifest.from_dict(json.loads(path.read_text()))
        space = TokenSpace.from_dict(manifest.token_space)
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, ValueError) as error:
        raise DamagedShard(f"{path}: {error}") from error
    if space.fingerprint != manifest.fingerprint:
        raise DamagedShard(f"{path}: the fingerprint does not match the token space")
    return manifest


def read_shard(folder: Path, entry: ShardEntry, space: TokenSpace) -> Iterator[TokenDocument]:
    """The documents of one shard, in order. Raises DamagedShard for anything that is not as the manifest says."""
    path = folder / entry.name
    if Path(entry.name).name != entry.name or not path.is_file():
        raise DamagedShard(f"{path} is in the manifest but not in the folder")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise DamagedShard(f"{path}: its SHA-256 is not the manifest's; the file was damaged or changed")
    try:
        documents = list(_documents(data, space))
    except (tarfile.TarError, ValueError, KeyError, TypeError, EOFError, RecursionError) as error:
        raise DamagedShard(f"{path}: {error}") from error
    if len(documents) != entry.documents:
        raise DamagedShard(f"{path} holds {len(documents)} documents, the manifest says {entry.documents}")
    yield from documents


def read_all(folder: Path) -> tuple[TokenSpace, list[TokenDocument]]:
    """Token space and every document of a folder."""
    manifest = open_manifest(folder)
    space = TokenSpace.from_dict(manifest.token_space)
    return space, [document for entry in manifest.shards for document in read_shard(folder, entry, space)]


def _documents(data: bytes, space: TokenSpace) -> Iterator[TokenDocument]:
    members: dict[str, dict[str, bytes]] = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for member in tar:
            file = tar.extractfile(member)
            key, _, ending = member.name.partition(".")
            if file is None or ending not in ("ids.npy", "json"):
                raise ValueError(f"unexpected member {member.name!r}")
            if members.setdefault(key, {}).setdefault(ending, b""):
                raise ValueError(f"{member.name!r} occurs twice")
            members[key][ending] = file.read()
    for key, parts in members.items():
        if set(parts) != {"ids.npy", "json"}:
            raise ValueError(f"{key!r} lacks its ids or its json")
        yield _document(key, parts, space)


def _document(key: str, parts: dict[str, bytes], space: TokenSpace) -> TokenDocument:
    ids = np.lib.format.read_array(io.BytesIO(parts["ids.npy"]), allow_pickle=False)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(f"{key!r} holds {ids.dtype} in {ids.ndim} dimensions; ids are whole numbers in one")
    described: dict[str, Any] = json.loads(parts["json"])
    segments, end = [], 0
    for s in described["segments"]:
        if s["start"] != end or s["length"] < 0:
            raise ValueError(f"{key!r}: its segments do not follow one another")
        end += s["length"]
        segments.append(_segment(key, s["kind"], s["role"], ids[s["start"] : end].astype(np.int64), space))
    if end != len(ids):
        raise ValueError(f"{key!r}: its segments do not cover its ids")
    return TokenDocument(key=key, segments=tuple(segments), meta=dict(described["meta"]))


def _segment(key: str, kind: Any, role: str, ids: np.ndarray, space: TokenSpace) -> TokenSegment:
    if kind not in ("text", "image"):
        raise ValueError(f"{key!r} holds a segment of kind {kind!r}; kinds are text and image")
    first, end = (0, space.text_size) if kind == "text" else (space.image_offset, space.vocab_size)
    outside = ids[(ids < first) | (ids >= end)]
    if len(outside):
        raise ValueError(f"{key!r} holds {kind} id {outside[0]}; those are {first} to {end - 1}")
    return TokenSegment(kind=kind, role=role, ids=ids)
