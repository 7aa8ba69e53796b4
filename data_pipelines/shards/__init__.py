"""Token shards: format, writer, reader."""

from data_pipelines.shards.format import DamagedShard, Manifest, ShardEntry, TokenDocument, TokenSegment
from data_pipelines.shards.reader import open_manifest, read_all, read_shard
from data_pipelines.shards.writer import ShardWriter

__all__ = [
    "DamagedShard",
    "Manifest",
    "ShardEntry",
    "ShardWriter",
    "TokenDocument",
    "TokenSegment",
    "open_manifest",
    "read_all",
    "read_shard",
]
