"""Shards at an address that fsspec knows: fetched once, verified, and refused in one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from data_pipelines.shards import DamagedShard, ShardWriter, read_all, remote
from data_pipelines.shards.remote import local_folder
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


def test_a_local_folder_is_its_own(tmp_path: Path) -> None:
    assert local_folder(str(tmp_path), tmp_path / "cache") == tmp_path


def test_remote_shards_are_fetched_whole_with_what_lies_beside_them(
    bucket: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    folder = local_folder(ADDRESS + "/", tmp_path / "cache")
    assert [document.key for document in read_all(folder)[1]] == [document.key for document in DOCUMENTS]
    assert (folder / "text_tokenizer" / "tokenizer.json").read_bytes() == b"{}"


def test_a_shard_that_is_there_is_not_fetched_again_and_a_damaged_one_is(
    bucket: fsspec.AbstractFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = local_folder(ADDRESS, tmp_path)
    (folder / "000001.tar").write_bytes(b"damaged")
    fetched: list[str] = []
    fetch = remote._fetch
    monkeypatch.setattr(remote, "_fetch", lambda address: fetched.append(address) or fetch(address))
    assert local_folder(ADDRESS, tmp_path) == folder
    assert fetched == [f"{ADDRESS}/manifest.json", f"{ADDRESS}/000001.tar"]
    assert len(read_all(folder)[1]) == 5


def test_what_cannot_be_fetched_is_refused_with_its_address(bucket: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"memory://nowhere/manifest\.json cannot be read"):
        local_folder("memory://nowhere", tmp_path)
    with pytest.raises(ValueError, match=r"nonsense://a/manifest\.json cannot be read \(Protocol not known: nonsense"):
        local_folder("nonsense://a", tmp_path)
    bucket.pipe("/bucket/shards/000001.tar", b"changed")
    with pytest.raises(DamagedShard, match=r"000001\.tar: its SHA-256 is not the manifest's; it did not arrive whole"):
        local_folder(ADDRESS, tmp_path)


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
    read = remote._read

    def denied(address: str) -> bytes:
        if address.endswith("tokenizer.json"):
            raise PermissionError("no right to read")
        return read(address)

    monkeypatch.setattr(remote, "_read", denied)
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
