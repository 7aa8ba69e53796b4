"""Remote shards in a bounded cache: fetched once by a machine, when they are read, and never partial or too many."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipelines import datamodule
from data_pipelines.batch import PackedBatch
from data_pipelines.datamodule import TokenDataModule
from data_pipelines.fetch_ahead import FetchAhead
from data_pipelines.mixture import Mixture, MixtureConfig
from data_pipelines.planning import StreamConfig
from data_pipelines.shards import DamagedShard, ShardWriter, cache, fetching
from data_pipelines.shards.cache import CachedFile, ShardCache
from data_pipelines.shards.documents import Documents
from data_pipelines.shards.reader import Shard, open_manifest
from data_pipelines.shards.remote import check_cache, local_folder, open_shards
from data_pipelines.templates import TemplateConfig
from tests.oracles.file_server import FileServer, serving
from tests.oracles.pictures import SPACE, caption_document
from tests.oracles.tiny import tiny_shards
from tests.oracles.tiny_training import ROOT

SHARDS, EACH = 8, 3


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr(fetching, "PAUSES", (0.01, 0.01, 0.01))
    made = tmp_path_factory.mktemp("made")
    with ShardWriter(made, SPACE, image_policy={}, source={}, documents_per_shard=EACH) as writer:
        for number in range(SHARDS * EACH):
            writer.write(caption_document(f"d{number:02d}"))
    with serving(made) as served:
        yield served


def size_of(server: FileServer) -> int:
    """Of a shard; they are all of one size."""
    return (server.folder / "000007.tar").stat().st_size


def opened(server: FileServer, folder: Path, shards: float) -> tuple[list[Shard], ShardCache]:
    """The shards behind a cache that has space for so many."""
    bounded = ShardCache(folder, int(shards * size_of(server)))
    local = local_folder(server.address, folder)
    return open_shards(server.address, local, open_manifest(local), bounded), bounded


def keys(shards: list[Shard]) -> list[str]:
    return [shard.document(index).key for shard in shards for index in range(len(shard))]


def stored(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*/*.tar*"))


EXPECTED = [f"d{number:02d}" for number in range(SHARDS * EACH)]


def test_more_shards_are_read_than_the_cache_holds_and_it_is_never_above_its_bound(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []
    fetch = cache.fetch_file

    def watched(address: str, target: Path, sha256: str | None = None) -> None:
        used.append(bounded.used_bytes())
        fetch(address, target, sha256)
        used.append(bounded.used_bytes())

    bounded = ShardCache(tmp_path / "cache", 3 * size_of(server))
    monkeypatch.setattr(cache, "fetch_file", watched)
    shards, _ = opened(server, tmp_path / "cache", 3)
    assert keys(shards) == EXPECTED and keys(shards[::-1])
    assert max(used) == bounded.max_bytes and len(used) > 2 * SHARDS
    assert len(stored(tmp_path / "cache")) == 3


def test_a_shard_is_fetched_when_it_is_read_and_verified_once(server: FileServer, tmp_path: Path) -> None:
    shards, _ = opened(server, tmp_path, 99)
    assert server.shards == {f"{number:06d}.tar": 1 for number in range(SHARDS)}
    [folder] = [path for path in tmp_path.iterdir() if (path / "manifest.json").exists()]
    for path in folder.glob("*.tar"):
        path.unlink()
    again, _ = opened(server, tmp_path, 99)
    assert sum(server.shards.values()) == SHARDS, "its index tells where documents lie"
    assert again[2].document(1).key == "d07" and server.shards["000002.tar"] == 2
    assert sum(server.shards.values()) == SHARDS + 1
    assert again[2].locations.to_arrays().keys() == shards[2].locations.to_arrays().keys()
    (folder / "000003.tar").write_bytes(b"damaged")
    for index in (folder / "index").glob("000004*.npz"):
        index.write_bytes(index.read_bytes()[:-100])
    final, _ = opened(server, tmp_path, 99)
    assert keys(final) == EXPECTED
    assert (folder / "000003.tar").stat().st_size == size_of(server)


def test_the_least_recently_used_is_evicted(server: FileServer, tmp_path: Path) -> None:
    shards, _ = opened(server, tmp_path, 3)
    for number in (5, 6, 7, 5, 0):
        shards[number].document(0)
        time.sleep(0.01)
    assert stored(tmp_path) == ["000000.tar", "000005.tar", "000007.tar"]


def test_a_shard_that_is_being_read_is_not_evicted(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, _ = opened(server, tmp_path, 2)
    held, document = [shards[0].file.opened(), shards[1].file.opened()], shards[0].document(0)
    monkeypatch.setattr(cache, "WAIT", 0.2)
    with pytest.raises(
        ValueError, match=r"is full of shards that are being read by other processes: raise data\.max_cache_gib"
    ):
        shards[2].document(0)
    assert stored(tmp_path) == ["000000.tar", "000001.tar"]
    del held[0]
    assert shards[2].document(0).key == "d06" and stored(tmp_path) == ["000001.tar", "000002.tar"]
    assert document.key == "d00" and len(document.segments[0].ids) > 0, "a document holds nothing of its file"
    with pytest.raises(ValueError, match=r"000003\.tar has .* GiB, and the cache .* GiB: raise data\.max_cache_gib"):
        CachedFile(ShardCache(tmp_path, 10), shards[3].file.address, tmp_path / "a" / "000003.tar", "").opened()  # pyright: ignore


def test_transfers_that_are_refused_or_cut_are_repeated_and_no_part_is_taken_for_a_shard(
    server: FileServer, tmp_path: Path
) -> None:
    server.refused, server.cut = 2, 1
    shards, _ = opened(server, tmp_path, 99)
    assert server.shards["000000.tar"] == 4 and keys(shards) == EXPECTED
    server.cut = 99
    other = tmp_path / "other"
    with pytest.raises(ValueError, match=r"000000\.tar cannot be read \("):
        opened(server, other, 99)
    assert stored(other) == []
    server.cut = 0
    (server.folder / "000000.tar").write_bytes(b"changed")
    with pytest.raises(DamagedShard, match=r"000000\.tar: its SHA-256 is not the manifest's; it did not arrive whole"):
        opened(server, other, 99)
    assert stored(other) == []


READER = """
import sys
from pathlib import Path
from data_pipelines.shards.cache import ShardCache
from data_pipelines.shards.reader import open_manifest
from data_pipelines.shards.remote import local_folder, open_shards
address, cache, size, backwards, together = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])
folder = local_folder(address, cache)
shards = open_shards(address, folder, open_manifest(folder), ShardCache(cache, size))
print("opened", flush=True)
if together:
    sys.stdin.readline()
order = shards[::-1] if backwards else shards
found = [shard.document(index).key for _ in range(3) for shard in order for index in range(len(shard))]
print(*sorted(set(found)), len(found), flush=True)
"""


def reader(server: FileServer, folder: Path, size: int, backwards: bool = False) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", READER, server.address, str(folder), str(size), str(int(backwards)), "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_processes_share_a_cache_and_fetch_each_shard_once(server: FileServer, tmp_path: Path) -> None:
    server.seconds = 0.05
    size = 99 * size_of(server)
    for process in [reader(server, tmp_path, size), reader(server, tmp_path, size, backwards=True)]:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0 and output.split() == ["opened", *EXPECTED, "72"], errors
    assert set(server.shards.values()) == {1}


@pytest.mark.slow
def test_two_processes_keep_the_bound_together(server: FileServer, tmp_path: Path) -> None:
    size = 3 * size_of(server)
    processes = [reader(server, tmp_path, size), reader(server, tmp_path, size, backwards=True)]
    used: list[int] = []
    while any(process.poll() is None for process in processes):
        used.append(sum(path.stat().st_size for path in tmp_path.glob("*/*.tar*") if path.exists()))
        time.sleep(0.02)
    for process in processes:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0 and output.split() == ["opened", *EXPECTED, "72"], errors
    assert 0 < max(used) <= size


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_fetches_leaves_no_shard_and_no_lock(
    server: FileServer, tmp_path: Path
) -> None:
    server.seconds = 60
    process = reader(server, tmp_path, 3 * size_of(server))
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("*/*.tar.*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    [partial] = stored(tmp_path)
    assert partial == f"000000.tar.{size_of(server)}.partial"
    server.seconds = 0
    shards, _ = opened(server, tmp_path, 3)
    assert keys(shards) == EXPECTED
    assert not list(tmp_path.glob("*/*.partial"))


def test_the_next_group_of_shards_is_fetched_while_one_is_read(server: FileServer, tmp_path: Path) -> None:
    shards, _ = opened(server, tmp_path, 99)
    for path in tmp_path.glob("*/*.tar"):
        path.unlink()
    documents = Documents(shards)
    mixture = Mixture([documents.sizes], MixtureConfig(weights=(1.0,)), seed=0, together=2)
    ahead, groups = FetchAhead([documents], mixture), mixture.groups(0, 0)
    for drawn, number in ((0, 0), (1, 0), (2 * EACH, 1), (SHARDS * EACH, 3)):
        mixture.cursors[0].taken = drawn
        ahead.follow()
        expected = [*groups[number], *(groups[number + 1] if number < 3 else mixture.groups(0, 1)[0])]
        names = {f"{shard:06d}.tar" for shard in expected}
        deadline = time.monotonic() + 20
        while not names <= set(stored(tmp_path)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert names <= set(stored(tmp_path))
        if number == 0:
            assert set(stored(tmp_path)) == names
    drawn = [mixture._order(0, 0)[index] // EACH for index in range(2 * EACH)]
    assert set(drawn) == set(groups[0])


def test_a_cache_that_is_too_small_for_the_shuffling_is_refused(server: FileServer, tmp_path: Path) -> None:
    shards, bounded = opened(server, tmp_path, 4.5)
    check_cache([shards], 2, bounded)
    with pytest.raises(ValueError, match=r"does not hold twice the 3 shards among which documents are shuffled"):
        check_cache([shards], 3, bounded)
    gib = 4.5 * size_of(server) / 2**30
    stream = StreamConfig(length=64, rows=2, window=4, shards_together=2)
    data = TokenDataModule([server.address], stream, cache=tmp_path, max_cache_gib=gib)
    data.setup("fit")
    batches = iter(data.train_dataloader())
    assert sum(next(batches).num_tokens for _ in range(20)) > 0
    with pytest.raises(ValueError, match="max_cache_gib is a finite number above 0"):
        TokenDataModule([server.address], max_cache_gib=0)


@pytest.mark.slow
def test_batches_of_remote_shards_are_those_of_local_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With latents and patches, through a cache that holds one of two shards."""
    local = tiny_shards(tmp_path / "shards", latents=True, patch=4)
    largest = max(path.stat().st_size for path in local.glob("*.tar"))
    stream = StreamConfig(length=64, rows=4, window=8, shards_together=1)
    templates = TemplateConfig(drawn="latents", seen="patches", patch_size=4)
    with serving(local) as served:
        bounded = {"cache": tmp_path / "cache", "max_cache_gib": 1.2 * largest / 2**30}
        sources: list[tuple[str, dict[str, Any]]] = [(str(local), {}), (served.address, bounded)]
        modules = [TokenDataModule([address], stream, templates, **settings) for address, settings in sources]
        batches: list[list[PackedBatch]] = []
        monkeypatch.setattr(datamodule, "check_cache", lambda *given: None)
        for module in modules:
            module.setup("fit")
            found = itertools.islice(module.train_dataloader(), 12)
            batches.append([*found, *module.val_dataloader()])
        assert max(Counter(served.shards).values()) > 1
    for expected, remote in zip(*batches, strict=True):
        assert torch.equal(remote.tokens, expected.tokens) and remote.media.keys() == expected.media.keys()
        for name, packed in expected.media.items():
            assert torch.equal(remote.media[name].values, packed.values)
