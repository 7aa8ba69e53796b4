"""How fast is the data path, and how full are its rows?

Five comparisons, one JSON line each, everything measured in turn in this process:

read                reading and verifying local shards, against plain webdataset reading the same tars
reader_packer       tokens a second that reader, packer and collation deliver, against the 2 million that are asked for
packing_efficiency  share of the rows that is not padding at 2,048 and 4,096 tokens, against greedy first-fit
packer              tokens a second of the packer alone, against the 1 million that are asked for
tokenize_share      images a second of the whole tokenization, as a share of the image tokenizer alone
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image
from webdataset import WebDataset  # pyright: ignore[reportAttributeAccessIssue]

from data_pipelines.documents import Document, ImageSegment, TextSegment
from data_pipelines.failures import FailureLog
from data_pipelines.mixture import MixtureConfig
from data_pipelines.packing import best_fit
from data_pipelines.planning import Plan, StreamConfig
from data_pipelines.shards import ShardWriter, TokenDocument, TokenSegment
from data_pipelines.shards.documents import Documents
from data_pipelines.shards.reader import Shard, open_manifest
from data_pipelines.stream import PackedStream
from data_pipelines.templates import TemplateConfig
from data_pipelines.tokenize import TokenizeConfig, tokenize, train_text_tokenizer
from tokenizers_vq.backbones import PatchBackboneConfig
from tokenizers_vq.image_tokenizer import ImageTokenizer, ImageTokenizerConfig
from tokenizers_vq.quantizers import FSQConfig
from tokenizers_vq.token_space import FixedLayout, TokenSpace

LAYOUT = FixedLayout(rows=16, columns=16)
SPACE = TokenSpace(text_size=8000, text_hash="", codebook_size=8192, image_hash="", layout=LAYOUT)
ASKED_READER_PACKER, ASKED_PACKER = 2_000_000, 1_000_000
LENGTHS = (2048, 4096)


def corpus(number: int, seed: int = 0) -> Iterator[TokenDocument]:
    """A mixed corpus: captioned pictures of 256 codes, text with lengths as on the web, pages of text and pictures."""
    random, ids = Random(seed), np.random.default_rng(seed)

    def words(log_mean: float, spread: float, longest: int) -> TokenSegment:
        length = min(max(int(random.lognormvariate(log_mean, spread)), 4), longest)
        return TokenSegment(kind="text", role="text", ids=ids.integers(20, SPACE.text_size, length))

    def picture() -> TokenSegment:
        codes = ids.integers(SPACE.image_offset, SPACE.vocab_size, LAYOUT.num_codes)
        return TokenSegment(kind="image", role="image", ids=codes)

    for index in range(number):
        kind = random.random()
        if kind < 0.4:
            caption = words(2.8, 0.5, 100)
            captioned = TokenSegment(kind="text", role="caption", ids=caption.ids)
            segments, layout = [picture(), captioned], "sample"
        elif kind < 0.8:
            segments, layout = [words(6.0, 1.0, 6000)], "sample"
        else:
            pages = ((words(4.5, 0.8, 800), picture()) for _ in range(random.randint(1, 5)))
            segments, layout = [segment for page in pages for segment in page], "interleaved"
        yield TokenDocument(key=f"{index:08d}", segments=tuple(segments), meta={"layout": layout})


def write_corpus(folder: Path, number: int) -> None:
    """Shards of 1,000 documents."""
    with ShardWriter(folder, SPACE, image_policy={}, source={}) as writer:
        for document in corpus(number):
            writer.write(document)


def open_shards(folder: Path) -> list[Shard]:
    """Opened and verified."""
    manifest = open_manifest(folder)
    return [Shard(folder, entry, manifest) for entry in manifest.shards]


def read_ours(folder: Path) -> int:
    """Tokens of all documents, verified and read."""
    return sum(
        int(segment.ids.sum() >= 0) for s in open_shards(folder) for document in s for segment in document.segments
    )


def read_theirs(folder: Path) -> int:
    """The same with webdataset: every member read and decoded."""
    files = [str(path) for path in sorted(folder.glob("*.tar"))]
    dataset = WebDataset(files, shardshuffle=False, empty_check=False).decode()
    return sum(int(sample["ids.npy"].sum() >= 0) + len(sample["json"]["segments"]) for sample in dataset)


def in_turn(functions: Sequence[Callable[[], Any]], runs: int) -> list[float]:
    """Median seconds of each function, run in turn; the first round is not counted."""
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(runs + 1):
        for found, function in zip(seconds, functions, strict=True):
            start = time.perf_counter()
            function()
            found.append(time.perf_counter() - start)
    return [statistics.median(found[1:]) for found in seconds]


def first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Greedy first-fit in the order of arrival, looking at the rows of one window."""
    rows: list[list[int]] = []
    free: list[int] = []
    for index, length in enumerate(lengths):
        place = next((row for row, room in enumerate(free) if room >= length), len(rows))
        if place == len(rows):
            rows.append([])
            free.append(capacity)
        rows[place].append(index)
        free[place] -= length
    return rows


def line(name: str, unit: str, ours: float, theirs: float, ratio: float, runs: int, **extra: Any) -> dict[str, Any]:
    """One comparison."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "webdataset": webdataset.__version__}
    device = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    return {
        "name": name,
        "unit": unit,
        "ours": ours,
        "theirs": theirs,
        "ratio": ratio,
        "runs": runs,
        "device": device,
        "versions": versions,
        **extra,
    }


def reading(folder: Path, runs: int) -> Iterator[dict[str, Any]]:
    """`read` and `reader_packer`."""
    ours, theirs = in_turn([lambda: read_ours(folder), lambda: read_theirs(folder)], runs)
    yield line("read", "s", ours, theirs, theirs / ours, runs)
    for length in LENGTHS:
        stream = PackedStream(
            [Documents(open_shards(folder))], SPACE, TemplateConfig(), StreamConfig(length=length, rows=16)
        )
        batches, rates = iter(stream), []
        for _ in range(runs + 1):
            start = time.perf_counter()
            tokens = sum(batch.num_tokens for batch in islice(batches, 60))
            rates.append(tokens / (time.perf_counter() - start))
        ours = statistics.median(rates[1:])
        yield line(
            "reader_packer", "tokens/s", ours, ASKED_READER_PACKER, ours / ASKED_READER_PACKER, runs, length=length
        )


def packing(folder: Path, runs: int) -> Iterator[dict[str, Any]]:
    """`packing_efficiency` and `packer`."""
    documents = Documents(open_shards(folder))
    for length in LENGTHS:
        config = StreamConfig(length=length, rows=16)
        plan = Plan([documents], SPACE, TemplateConfig(), config, MixtureConfig(weights=(1.0,)))
        given = plan.take(len(documents) * 300 // length)
        lengths = [len(outline) for _, outlines in given for outline in outlines]
        Random(0).shuffle(lengths)
        windows = [lengths[start : start + config.window] for start in range(0, len(lengths), config.window)]
        greedy = sum(len(first_fit(window, length)) for window in windows) * length
        yield line(
            "packing_efficiency",
            "share",
            plan.report.efficiency,
            sum(lengths) / greedy,
            plan.report.efficiency * greedy / sum(lengths),
            1,
            length=length,
        )
        (seconds,) = in_turn([lambda w=windows, n=length: [best_fit(window, n) for window in w]], runs)
        rate = sum(lengths) / seconds
        yield line("packer", "tokens/s", rate, ASKED_PACKER, rate / ASKED_PACKER, runs, length=length)


class Pictures:
    """A source of PNG files of noise over a plain ground."""

    def __init__(self, folder: Path, number: int) -> None:
        self.notes: dict[str, int] = {}
        self.failures = FailureLog()
        self.files = [folder / f"{index:05d}.png" for index in range(number)]
        pixels = np.random.default_rng(0)
        for file in self.files:
            image = np.tile(pixels.integers(0, 256, (8, 8, 3), dtype=np.uint8), (8, 8, 1))
            Image.fromarray(image).save(file)

    def documents(self) -> Iterator[Document]:
        """A picture with a caption each."""
        for file in self.files:
            segments = (ImageSegment(source=file), TextSegment(text="a picture", role="caption"))
            yield Document(key=file.stem, segments=segments, meta={"layout": "sample"})

    def __len__(self) -> int:
        return len(self.files)

    def fingerprint(self) -> str:
        """Of nothing: the pictures are made here."""
        return ""


def tokenizing(folder: Path, number: int, runs: int) -> dict[str, Any]:
    """`tokenize_share`, with the demo's backbone."""
    config = ImageTokenizerConfig(
        image_size=64, backbone=PatchBackboneConfig(patch_size=8, width=256, depth=3), quantizer=FSQConfig()
    )
    torch.manual_seed(0)
    image = ImageTokenizer(config).eval()
    (folder / "pictures").mkdir()
    source = Pictures(folder / "pictures", number)
    text = train_text_tokenizer(source, 300)
    ready = torch.rand(256, 3, 64, 64) * 2 - 1
    names = (folder / f"shards-{run}" for run in range(runs + 1))

    def alone() -> None:
        for _ in range(number // 256):
            image.encode(ready)

    def whole() -> None:
        tokenize(source, text, image, next(names), FailureLog(), TokenizeConfig(workers=2))

    theirs, ours = in_turn([alone, whole], runs)
    return line("tokenize_share", "images/s", number / ours, number / theirs, theirs / ours, runs)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=20_000, metavar="N", help="default 20,000")
    parser.add_argument("--pictures", type=int, default=2048, metavar="N", help="a multiple of 256, default 2,048")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="default 3")
    parser.add_argument(
        "--folder", type=Path, default=None, metavar="DIR", help="where to work; a temporary one if absent"
    )
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() if options.folder is None else nullcontext(options.folder) as name:
        folder = Path(name)
        write_corpus(folder / "corpus", options.documents)
        for found in (*reading(folder / "corpus", options.runs), *packing(folder / "corpus", options.runs)):
            print(json.dumps(found), flush=True)
        print(json.dumps(tokenizing(folder, options.pictures, options.runs)), flush=True)
    print("done", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
