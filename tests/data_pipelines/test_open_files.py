"""More shards than a process may open files: each is opened when it is read, and closed again."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipelines.shards import DamagedShard, ShardWriter
from data_pipelines.shards import mapped as mapped_files
from data_pipelines.shards.mapped import MappedFile
from data_pipelines.shards.reader import Shard, open_manifest
from tests.oracles.pictures import SPACE, caption_document

FOLLOW = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from data_pipelines.shards.reader import Shard, open_manifest
folder = Path(sys.argv[1])
manifest = open_manifest(folder)
shards = [Shard(folder, entry, manifest) for entry in manifest.shards]
ids = [shard.document(0).segments[0].ids for shard in shards[::40]]
again = [shard.document(0).key for shard in [*shards, *reversed(shards)]]
print(len(shards), len(again), sum(map(len, ids)) > 0)
"""


def written(folder: Path, shards: int) -> Path:
    with ShardWriter(folder, SPACE, image_policy={}, source={}, documents_per_shard=1) as writer:
        for number in range(shards):
            writer.write(caption_document(f"d{number}"))
    return folder


@pytest.mark.slow
def test_three_thousand_shards_are_read_under_a_limit_of_256_open_files(tmp_path: Path) -> None:
    folder = written(tmp_path / "shards", 3000)
    done = subprocess.run([sys.executable, "-c", FOLLOW, str(folder)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["3000", "6000", "True"]


def test_files_are_closed_once_nothing_of_them_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = written(tmp_path / "shards", 200)
    manifest = open_manifest(folder)
    mapped_files._mapped.cache_clear()
    before = len(os.listdir("/proc/self/fd"))
    shards = [Shard(folder, entry, manifest) for entry in manifest.shards]
    assert len(os.listdir("/proc/self/fd")) - before <= mapped_files.OPEN_FILES
    held = [shard.document(0) for shard in shards]
    assert [document.key for document in held] == [f"d{number}" for number in range(200)]
    del held
    assert len(os.listdir("/proc/self/fd")) - before <= mapped_files.OPEN_FILES
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > mapped_files.OPEN_FILES


def test_a_file_that_was_changed_after_it_was_verified_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    file = MappedFile(path)
    assert bytes(file.data) == b"one"
    mapped_files._mapped.cache_clear()
    path.write_bytes(b"other")
    with pytest.raises(DamagedShard, match="was changed after it had been verified"):
        _ = file.data
    path.unlink()
    with pytest.raises(DamagedShard, match="cannot be read any more"):
        _ = file.data
