"""Shards at an address that fsspec knows: fetched when they are read, verified, and refused in one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from data_pipelines.shards import DamagedShard, ShardWriter, fetching
from data_pipelines.shards.cache import ShardCache
from data_pipelines.shards.reader import open_manifest
from data_pipelines.shards.remote import local_folder, open_shards
from tests.oracles.pictures import SPACE, caption_document

ADDRESS = "memory://bucket/shards"
DOCUMENTS = [caption_document(f"d{i}") for i in range(5)]


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[fsspec.AbstractFileSystem]:
    """A file system elsewhere, with shards and a text tokenizer."""
    files = fsspec.filesystem("memory")
    with ShardWriter(tmp_path / "made", SPACE, image_policy={}, source={}, documents_per_shard=2) as writer:
        for document in DOCUMENTS:
            writer.write(document)
    for path in (tmp_path / "made").iterdir():
        files.pipe(f"/bucket/shards/{path.name}", path.read_bytes())
    files.pipe("/bucket/shards/text_tokenizer/tokenizer.json", b"{}")
    yield files
    files.rm("/bucket", recursive=True)


def keys(cache: Path, address: str = ADDRESS) -> list[str]:
    """Of all documents, read through a cache that is large enough."""
    folder = local_folder(address, cache)
    shards = open_shards(address, folder, open_manifest(folder), ShardCache(cache, 10**9))
    return [shard.document(index).key for shard in shards for index in range(len(shard))]


def test_a_local_folder_is_its_own(tmp_path: Path) -> None:
    assert local_folder(str(tmp_path), tmp_path / "cache") == tmp_path


def test_remote_shards_are_read_and_what_lies_beside_them_is_fetched(
    bucket: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    folder = local_folder(ADDRESS + "/", tmp_path / "cache")
    assert not list(folder.glob("*.tar"))
    assert keys(tmp_path / "cache", ADDRESS + "/") == [document.key for document in DOCUMENTS]
    assert (folder / "text_tokenizer" / "tokenizer.json").read_bytes() == b"{}"


def test_a_shard_that_is_there_is_not_fetched_again_and_a_damaged_one_is(
    bucket: fsspec.AbstractFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys(tmp_path)
    folder = local_folder(ADDRESS, tmp_path)
    (folder / "000001.tar").write_bytes(b"damaged")
    fetched: list[str] = []
    attempted = fetching._attempted

    def watched(address: str, act: Any) -> Any:
        fetched.append(address)
        return attempted(address, act)

    monkeypatch.setattr(fetching, "_attempted", watched)
    assert len(keys(tmp_path)) == 5
    shards = [address for address in fetched if address.endswith(".tar")]
    assert shards == [f"{ADDRESS}/000001.tar"] * 2, "its size, and the shard"


def test_what_cannot_be_fetched_is_refused_with_its_address(
    bucket: fsspec.AbstractFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"memory://nowhere/manifest\.json cannot be read"):
        local_folder("memory://nowhere", tmp_path)
    with pytest.raises(ValueError, match=r"nonsense://a/manifest\.json cannot be read \(Protocol not known: nonsense"):
        local_folder("nonsense://a", tmp_path)
    bucket.pipe("/bucket/shards/000001.tar", b"changed")
    monkeypatch.setattr(fetching, "PAUSES", ())
    with pytest.raises(DamagedShard, match=r"000001\.tar: its SHA-256 is not the manifest's; it did not arrive whole"):
        keys(tmp_path)


def test_a_manifest_cannot_lead_out_of_its_folder(bucket: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    manifest = json.loads(bytes(bucket.cat_file("/bucket/shards/manifest.json")))  # pyright: ignore[reportArgumentType]
    manifest["shards"][0]["name"] = "../../outside.tar"
    bucket.pipe("/bucket/shards/manifest.json", json.dumps(manifest).encode())
    bucket.pipe("/outside.tar", b"x")
    with pytest.raises(DamagedShard, match="leads out of its folder"):
        local_folder(ADDRESS, tmp_path / "cache")
    assert not list(tmp_path.rglob("outside.tar"))


def test_a_tokenizer_that_is_there_but_cannot_be_read_is_refused_and_not_passed_over(
    bucket: fsspec.AbstractFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = MemoryFileSystem.get_file

    def denied(files: Any, path: str, *arguments: Any, **named: Any) -> Any:
        if path.endswith("tokenizer.json"):
            raise PermissionError("no right to read")
        return get(files, path, *arguments, **named)

    monkeypatch.setattr(MemoryFileSystem, "get_file", denied)
    with pytest.raises(ValueError, match=r"text_tokenizer/tokenizer\.json cannot be read \(no right to read\)"):
        local_folder(ADDRESS, tmp_path)


def test_an_autoencoder_beside_the_shards_is_fetched_and_goes_when_it_is_gone(
    bucket: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    for name in ("config.json", "model.safetensors"):
        bucket.pipe(f"/bucket/shards/autoencoder/{name}", name.encode())
    folder = local_folder(ADDRESS, tmp_path)
    assert (folder / "autoencoder" / "model.safetensors").read_bytes() == b"model.safetensors"
    bucket.rm("/bucket/shards/autoencoder", recursive=True)
    assert local_folder(ADDRESS, tmp_path) == folder and not (folder / "autoencoder").exists()
