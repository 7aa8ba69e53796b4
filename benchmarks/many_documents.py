"""What it takes to open very many documents: seconds of `setup` and the peak memory of the process that does it.

    python benchmarks/many_documents.py --documents 1000000

Shards of short captioned pictures are written first, 1,000 documents each. The last line is JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_pipelines.shards.format import Manifest
from data_pipelines.shards.writer import write_manifest, write_shard
from tests.oracles.pictures import SPACE, caption_document

A_SHARD = 1000
MEASURE = """
import json, resource, sys, time
from data_pipelines.datamodule import TokenDataModule
start = time.perf_counter()
data = TokenDataModule([sys.argv[1]])
data.setup("fit")
seconds = time.perf_counter() - start
documents = sum(map(len, data.train_sources)) + len(data.val_documents)
started = time.perf_counter()
next(iter(data.train_dataloader()))
print(json.dumps({
    "documents": documents,
    "setup_s": round(seconds, 2),
    "us_a_document": round(1e6 * seconds / documents, 1),
    "first_batch_s": round(time.perf_counter() - started, 2),
    "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
}))
"""


def main() -> None:
    """Write the shards, then open them in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=100_000)
    documents = parser.parse_args().documents
    with tempfile.TemporaryDirectory() as temporary:
        folder, example = Path(temporary), caption_document("example")
        entries = []
        for first in range(0, documents, A_SHARD):
            numbers = range(first, min(first + A_SHARD, documents))
            several = [dataclasses.replace(example, key=f"document-{number:08d}") for number in numbers]
            entries.append(write_shard(folder, len(entries), several, SPACE, {}))
        space = {"token_space": SPACE.to_dict(), "fingerprint": SPACE.fingerprint}
        write_manifest(folder, Manifest(**space, image_policy={}, source={}, shards=tuple(entries)))
        done = subprocess.run([sys.executable, "-c", MEASURE, temporary], capture_output=True, text=True, check=True)
        print(json.dumps({"benchmark": "many documents", **json.loads(done.stdout.splitlines()[-1])}))


if __name__ == "__main__":
    main()
