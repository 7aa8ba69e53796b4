"""How fast is the decoding engine beside transformers' `generate`, on the same weights in the same precision?

A decoder in Llama's shape of about 100M parameters is exported to `LlamaForCausalLM` and both decode the same work in
turn: text alone (batch 1 and 16), images with guidance (batch 8), a queue of mixed prompts against static batches; and
how near a single row comes to the limit that the memory's bandwidth sets. One JSON line for each goes to stdout, the
rest to stderr. Figures: docs/results.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from tokenizers_vq.token_space import FixedLayout, TokenSpace
from unimodal.generation.engine import Engine
from unimodal.generation.forward import compiled_forward
from unimodal.generation.guidance import GuidanceConfig
from unimodal.generation.requests import DecodeConfig, Request
from unimodal.interop.export import to_transformers
from unimodal.model.config import ModelConfig, TransformerConfig
from unimodal.model.flops import active_parameters
from unimodal.model.inference.prepacked import prepacked
from unimodal.model.model import UnifiedModel

LAYOUT = FixedLayout(rows=16, columns=16)
SPACE = TokenSpace(text_size=8192, text_hash="", codebook_size=8192, image_hash="", layout=LAYOUT)
TRUNK = TransformerConfig(
    dim=768, num_layers=12, num_heads=12, num_kv_heads=4, hidden_dim=2048, max_length=2048, qk_norm=None
)
SHAPE = ModelConfig(vocab_size=SPACE.vocab_size, trunk=TRUNK)
GUIDANCE = 3.0
PROMPT = 32
TEXT = 256
"""Tokens of an answer of the text figures."""
ROWS = 16
"""Rows side by side in the queue, and in transformers' static batches."""
QUEUE = 256
"""Prompts of the queue."""
READ = 256 * 2**20
"""Bytes of the array whose reading measures the bandwidth."""

READS = 40
"""Readings for one measurement of the bandwidth: about half a second."""

JSON = dict[str, Any]


@dataclass(frozen=True)
class Model:
    """One set of weights in both engines."""

    engine: Engine
    llama: Any
    dtype: torch.dtype

    @classmethod
    def make(cls, dtype: torch.dtype) -> Model:
        """Random weights; a random model's answers are as long as they are allowed to be."""
        torch.manual_seed(0)
        model = UnifiedModel(SHAPE).eval().requires_grad_(False)
        llama: Any = to_transformers(model)
        llama = llama.to(dtype)
        llama.generation_config.update(eos_token_id=None, pad_token_id=SPACE.specials.pad)
        ready = prepacked(model.to(dtype))
        return cls(Engine(ready, SPACE, compiled_forward(model, ready)), llama, dtype)


def prompt(random: Random, length: int) -> list[int]:
    """`<bos> words <sep>`."""
    words = [random.randrange(7, SPACE.text_size) for _ in range(length - 2)]
    return [SPACE.specials.bos, *words, SPACE.specials.sep]


class OnlyCodes(LogitsProcessor):
    """What a user of transformers writes to keep an image span well formed: image codes alone."""

    def __init__(self) -> None:
        self.bias = torch.full((SPACE.vocab_size,), float("-inf"))
        self.bias[SPACE.image_offset :] = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return scores + self.bias.to(scores.dtype)


@torch.inference_mode()
def theirs(model: Model, prompts: Sequence[Sequence[int]], new: int, *, image: bool = False) -> int:
    """One static batch through transformers; returns the number of tokens made."""
    longest = max(map(len, prompts))
    pad = SPACE.specials.pad
    ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts])
    extra: JSON = {}
    if image:
        ids = torch.cat([ids, torch.full((len(ids), 1), SPACE.specials.boi)], dim=1)
        null = torch.tensor(
            [[SPACE.specials.bos, SPACE.specials.null, SPACE.specials.sep, SPACE.specials.boi]] * len(ids)
        )
        extra = {"guidance_scale": GUIDANCE, "negative_prompt_ids": null}
        extra["negative_prompt_attention_mask"] = torch.ones_like(null)
        extra["logits_processor"] = LogitsProcessorList([OnlyCodes()])
    out = model.llama.generate(
        ids,
        attention_mask=(ids != pad).long(),
        do_sample=True,
        top_k=0,
        max_new_tokens=new,
        min_new_tokens=new,
        **extra,
    )
    assert out.shape == (len(prompts), ids.shape[1] + new)
    return len(prompts) * new


def ours(model: Model, requests: Sequence[Request], rows: int) -> int:
    """Requests through the engine; returns the number of tokens made."""
    return sum(len(answer.ids) for answer in model.engine.decode(requests, rows=rows))


def text_requests(random: Random, count: int, new: int) -> list[Request]:
    """Prompts of one length, answers of text."""
    config = DecodeConfig(mode="text", max_new_tokens=new)
    return [Request(prompt=prompt(random, PROMPT), config=config, seed=seed) for seed in range(count)]


def image_requests(random: Random, count: int) -> list[Request]:
    """Prompts of one length, each to be drawn."""
    config = DecodeConfig(mode="image", max_new_tokens=SPACE.layout.span + 1, guidance=GuidanceConfig(scale=GUIDANCE))
    return [Request(prompt=prompt(random, PROMPT), config=config, seed=seed) for seed in range(count)]


def mixed_requests(random: Random, count: int) -> list[Request]:
    """Answers of 4 to 192 tokens of text, mostly short ones, and every eighth an image."""
    requests = []
    for seed in range(count):
        asked = prompt(random, random.randint(8, 64))
        length = 4 + int(188 * random.random() ** 2)
        config = DecodeConfig(mode="text", max_new_tokens=length)
        if seed % 8 == 0:
            config = image_requests(random, 1)[0].config
        requests.append(Request(prompt=asked, config=config, seed=seed))
    return requests


def static_batches(model: Model, requests: Sequence[Request]) -> int:
    """The queue as transformers takes it: text and images apart, each batch as long as its longest answer."""
    wanted = 0
    for mode in ("text", "image"):
        alike = [request for request in requests if request.config.mode == mode]
        for start in range(0, len(alike), ROWS):
            batch = alike[start : start + ROWS]
            codes = LAYOUT.num_codes
            new = codes if mode == "image" else max(request.config.max_new_tokens for request in batch)
            theirs(model, [request.prompt for request in batch], new, image=mode == "image")
            wanted += sum(codes if mode == "image" else request.config.max_new_tokens for request in batch)
    return wanted


def in_turn(runs: int, *measured: Callable[[], int]) -> list[float]:
    """Median units per second of each, run one after the other."""
    rates: list[list[float]] = [[] for _ in measured]
    for _ in range(runs):
        for found, work in zip(rates, measured, strict=True):
            start = time.perf_counter()
            done = work()
            found.append(done / (time.perf_counter() - start))
    return [statistics.median(found) for found in rates]


def reader() -> Callable[[], int]:
    """A function that reads an array a few times and returns the number of bytes."""
    array = torch.ones(READ // 4)

    def read() -> int:
        for _ in range(READS):
            array.sum()
        return READS * READ

    return read


def bytes_a_token(model: Model, length: int) -> int:
    """What one token of a single row has to read: all matrices, and the keys and values of `length` positions."""
    size, trunk = torch.finfo(model.dtype).bits // 8, SHAPE.trunk
    cache = 2 * trunk.num_layers * trunk.num_kv_heads * trunk.head_dim * length
    with torch.device("meta"):
        matrices = active_parameters(UnifiedModel(SHAPE))
    return size * (matrices + cache)


def line(name: str, unit: str, pair: Sequence[float], runs: int, model: Model) -> None:
    """The contract's JSON line."""
    result = {
        "name": name,
        "unit": unit,
        "ours": pair[0],
        "theirs": pair[1],
        "ratio": pair[0] / pair[1],
        "runs": runs,
        "device": f"{platform.machine()} CPU, {torch.get_num_threads()} threads, {str(model.dtype)[6:]}",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    print(json.dumps(result), flush=True)


def compare(model: Model, names: Sequence[str], runs: int) -> None:
    """All figures that are asked for, ours and theirs in turn."""
    random = Random(0)
    for count in (1, 16):
        if f"text_b{count}" in names:
            asked = text_requests(random, count, TEXT)
            prompts = [request.prompt for request in asked]
            pair = in_turn(runs, lambda a=asked: ours(model, a, len(a)), lambda p=prompts: theirs(model, p, TEXT))
            line(f"text_b{count}", "tokens/s", pair, runs, model)
    if "bandwidth_share_b1" in names:
        asked = text_requests(random, 1, TEXT)
        a_token = bytes_a_token(model, PROMPT + TEXT // 2)
        pair = in_turn(2 * runs + 1, lambda: ours(model, asked, 1) * a_token, reader())
        line("bandwidth_share_b1", "bytes/s", pair, 2 * runs + 1, model)
    if "image_guided_b8" in names:
        asked, codes = image_requests(random, 8), LAYOUT.num_codes
        prompts = [request.prompt for request in asked]

        def draw() -> int:
            ours(model, asked, 8)
            return 8

        def draw_theirs() -> int:
            theirs(model, prompts, codes, image=True)
            return 8

        line("image_guided_b8", "images/s", in_turn(runs, draw, draw_theirs), runs, model)
    if "queue_256" in names:
        asked = mixed_requests(random, QUEUE)
        wanted = static_batches_tokens(asked)
        pair = in_turn(1, lambda: (ours(model, asked, ROWS), wanted)[1], lambda: static_batches(model, asked))
        line("queue_256", "tokens/s", pair, 1, model)


def static_batches_tokens(requests: Sequence[Request]) -> int:
    """Tokens that were wanted, boi and eoi of images aside."""
    codes = LAYOUT.num_codes
    return sum(codes if r.config.mode == "image" else r.config.max_new_tokens for r in requests)


def table(model: Model) -> None:
    """Batch 1 to 64: tokens/s, seconds an image, peak memory, share of the bandwidth limit; Markdown on stderr."""
    (speed,) = in_turn(7, reader())
    tell(f"{speed / 1e9:.1f} GB/s")
    tell("| batch | text tokens/s | share of the bandwidth limit | s/image with guidance | peak memory, MB |")
    tell("|---|---|---|---|---|")
    for rows in (1, 2, 4, 8, 16, 32, 64):
        random = Random(rows)
        (text,) = in_turn(2, lambda r=random, n=rows: ours(model, text_requests(r, n, 48), n))
        cache = bytes_a_token(model, PROMPT + 24) - bytes_a_token(model, 0)
        share = text / rows * (bytes_a_token(model, 0) + rows * cache) / speed
        start = time.perf_counter()
        ours(model, image_requests(random, rows), rows)
        image = (time.perf_counter() - start) / rows
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        tell(f"| {rows} | {text:.0f} | {share:.0%} | {image:.2f} | {peak:.0f} |")


def tell(text: str) -> None:
    """A line for people."""
    print(text, file=sys.stderr, flush=True)


NAMES = ("text_b1", "text_b16", "bandwidth_share_b1", "image_guided_b8", "queue_256")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--runs", type=int, default=3, metavar="N", help="runs in turn of all but the queue (default 3)"
    )
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--table", action="store_true", help="print the table over batch sizes instead")
    options = parser.parse_args(arguments)
    model = Model.make(getattr(torch, options.dtype))
    tell(f"{sum(p.numel() for p in model.llama.parameters()) / 1e6:.0f}M parameters, {options.dtype}")
    for rows in (1, 2):
        ours(model, text_requests(Random(1), rows, 4), rows)  # compiles
    theirs(model, [prompt(Random(1), 8)], 4)
    table(model) if options.table else compare(model, options.only, options.runs)


if __name__ == "__main__":
    main()
