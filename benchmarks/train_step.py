"""How much of the machine's own matmul rate does a training step of the decoder use?

Both are measured in one run and in turn, in bfloat16 where the CPU has units for it and else in float32. The step is
the one of unimodal/training/module.py: packed batches, forward in autocast, losses, backward, gradient clip, optimizer;
eager and compiled. One JSON line goes to stdout, the rest to stderr.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import platform
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from data_pipelines.batch import PackedBatch, collate
from data_pipelines.planning import StreamConfig
from data_pipelines.shards import TokenDocument, TokenSegment
from data_pipelines.stream import epoch_batches
from data_pipelines.templates import TemplateConfig
from tokenizers_vq.token_space import FixedLayout, TokenSpace
from unimodal.model.config import ModelConfig, TransformerConfig
from unimodal.model.flops import active_parameters, flops_per_token
from unimodal.model.inference.compiling import compile_blocks
from unimodal.model.masks import dense_mask
from unimodal.model.model import UnifiedModel
from unimodal.training.gradients import gradients_of, to_means
from unimodal.training.objectives.base import total
from unimodal.training.objectives.next_token import next_token_terms
from unimodal.training.optimizers.build import MuonConfig, build_optimizer
from unimodal.training.precision import matmul_dtype

LAYOUT = FixedLayout(rows=8, columns=8)
SPACE = TokenSpace(text_size=340, text_hash="", codebook_size=1024, image_hash="", layout=LAYOUT)
DOCUMENTS, WINDOW = 1024, 512
DTYPE = matmul_dtype(torch.device("cpu"))
PRODUCTS = 30
STEPS_A_ROUND = 2
WARM_UP_STEPS = 2
PROFILED_STEPS = 3
MATRIX_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::matmul", "aten::linear", "mkldnn::_linear_pointwise")
ATTENTION = ("ChunkedAttention", "scaled_dot_product")


def synthetic_documents(number: int, seed: int = 0) -> list[TokenDocument]:
    """Documents as long as easy-VQA's: 64 codes, a caption of 4 ids, 8 to 11 questions of 5 to 8, answers of 1."""
    random = Random(seed)

    def segment(role: str, length: int) -> TokenSegment:
        ids = [random.randrange(len(SPACE.specials.__dict__), SPACE.text_size) for _ in range(length)]
        return TokenSegment(kind="text", role=role, ids=np.asarray(ids))

    documents = []
    for index in range(number):
        codes = [SPACE.image_offset + random.randrange(SPACE.codebook_size) for _ in range(LAYOUT.num_codes)]
        segments = [TokenSegment(kind="image", role="image", ids=np.asarray(codes)), segment("caption", 4)]
        for _ in range(random.randint(8, 11)):
            segments += [segment("question", random.randint(5, 8)), segment("answer", 1)]
        documents.append(TokenDocument(key=str(index), segments=tuple(segments)))
    return documents


class Step:
    """One training step at a time, as Lightning composes it from the module."""

    def __init__(self, model: UnifiedModel, *, compile: bool) -> None:
        self.model = copy.deepcopy(model) if compile else model
        if compile:
            compile_blocks(self.model)
        self.optimizer = build_optimizer(self.model, MuonConfig())

    def run(self, batch: PackedBatch) -> float:
        """Zero the gradients, forward, losses, backward, clip, optimizer; returns the loss, a mean over the tokens."""
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=DTYPE.itemsize < 4):
            mask = dense_mask(batch.documents, batch.branches)
            features = self.model(batch.tokens, batch.positions, mask)
            terms = next_token_terms(
                features, self.model.token_head, batch.targets, batch.loss_weights, batch.modality, z_weight=1e-5
            )
        loss, weight = total(terms), terms["z_loss"].weight
        loss.backward()
        with record_function("part: optimizer"):
            norm = to_means(gradients_of(self.optimizer), weight)
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), 1.0, norm)
            self.optimizer.step()
        return float(loss.detach() / weight)


@dataclass(frozen=True)
class Data:
    """Batches made beforehand, and how long one takes: packing works on many documents at once, so it is a mean."""

    batches: list[PackedBatch]
    seconds: float

    @classmethod
    def make(cls, length: int, rows: int) -> Data:
        """As many batches as the documents give, timed together."""
        stream = StreamConfig(length=length, rows=rows, window=WINDOW)
        documents = synthetic_documents(DOCUMENTS)
        start = time.perf_counter()
        packed = list(epoch_batches(documents, SPACE, TemplateConfig(), stream))
        batches = [collate(batch, length, SPACE, rows) for batch in packed]
        seconds = (time.perf_counter() - start) / len(batches)
        return cls(batches[:-1] or batches, seconds)  # the last one is mostly padding

    @property
    def full(self) -> float:
        """Share of tokens that are not padding."""
        return sum(batch.num_tokens for batch in self.batches) / sum(batch.tokens.numel() for batch in self.batches)


def matmul_rate(size: int) -> float:
    """FLOP/s of the median of some products of two square matrices."""
    a, b = torch.randn(2, size, size).to(DTYPE)
    seconds = []
    for _ in range(PRODUCTS):
        start = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seconds)


@dataclass(frozen=True)
class Found:
    """Medians: matmul FLOP/s by size, seconds of a step by kind."""

    rates: dict[int, float]
    steps: dict[str, float]


def measure(model: UnifiedModel, data: Data, rounds: int) -> Found:
    """Matmul and steps in turn."""
    batches = itertools.cycle(data.batches)
    steps = {name: Step(model, compile=name == "compiled") for name in ("eager", "compiled")}
    for step in steps.values():
        for _ in range(WARM_UP_STEPS):
            step.run(next(batches))
    rates: dict[int, list[float]] = {1024: [], 2048: []}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            for size, found in rates.items():
                found.append(matmul_rate(size))
            for _ in range(STEPS_A_ROUND):
                start = time.perf_counter()
                step.run(next(batches))
                seconds[name].append(time.perf_counter() - start)
    medians = statistics.median
    return Found({k: medians(v) for k, v in rates.items()}, {k: medians(v) for k, v in seconds.items()})


def where_it_goes(step: Step, data: Data) -> dict[str, float]:
    """Share of an eager step's time by part, from torch.profiler."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter()
        for batch in itertools.islice(itertools.cycle(data.batches), PROFILED_STEPS):
            step.run(batch)
        total = time.perf_counter() - start
    spent: defaultdict[str, float] = defaultdict(float)
    for event in profiler.events() or []:
        spent[_part(event)] += event.self_cpu_time_total / 1e6
    spent["python and the profiler itself"] = max(total - sum(spent.values()), 0)
    spent["data"] = data.seconds * PROFILED_STEPS
    return {
        name: seconds / (total + spent["data"]) for name, seconds in sorted(spent.items(), key=lambda item: -item[1])
    }


def _part(event: Any) -> str:
    own_name, ancestor = event.name, event
    while ancestor is not None:
        if ancestor.name.startswith("part: "):
            return ancestor.name.removeprefix("part: ")
        if any(word in ancestor.name for word in ATTENTION):
            return "attention"
        ancestor = ancestor.cpu_parent
    return "matmul" if own_name in MATRIX_PRODUCTS else "elementwise and the rest"


def report(found: Found, model: UnifiedModel, data: Data, options: argparse.Namespace) -> dict[str, Any]:
    """Tell the details on stderr; returns the line for stdout, about compiled steps with the making of their data."""
    tokens = options.rows * options.length
    flops = tokens * flops_per_token(model, options.length)
    for size, rate in found.rates.items():
        tell(f"{DTYPE} matmul {size}x{size}: {rate / 1e9:.1f} GFLOP/s")
    tell(f"making a batch: {data.seconds:.4f} s; {data.full:.1%} of its tokens are no padding")
    for name, seconds in found.steps.items():
        share = flops / (seconds + data.seconds) / found.rates[1024]
        tell(
            f"{name} step: {seconds:.3f} s, with its data {share:.1%} of matmul 1024 "
            f"({share * found.rates[1024] / found.rates[2048]:.1%} of 2048), without padding {share * data.full:.1%}; "
            f"without data {flops / seconds / found.rates[1024]:.1%}; "
            f"{tokens * data.full / (seconds + data.seconds):,.0f} tokens/s"
        )
    ours = flops / (found.steps["compiled"] + data.seconds)
    return {
        "name": "train_share_of_matmul",
        "unit": "FLOP/s",
        "ours": ours,
        "theirs": found.rates[1024],
        "ratio": ours / found.rates[1024],
        "runs": options.rounds,
        "device": f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def tell(line: str) -> None:
    """A line for people."""
    print(line, file=sys.stderr)


def sized_parser(about: str | None, **sizes: int) -> argparse.ArgumentParser:
    """A command line with an option for each size, and its default."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in sizes.items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=int, default=default, metavar="N", help=f"default {default}")
    return parser


def config_of(options: argparse.Namespace) -> ModelConfig:
    """The model that the sizes ask for."""
    trunk = TransformerConfig(
        dim=options.dim,
        num_layers=options.layers,
        num_heads=options.heads,
        num_kv_heads=options.kv_heads,
        hidden_dim=options.hidden,
    )
    return ModelConfig(vocab_size=SPACE.vocab_size, trunk=trunk)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    sizes = {"dim": 512, "layers": 6, "heads": 4, "kv_heads": 4, "hidden": 1408, "length": 160, "rows": 51, "rounds": 5}
    parser = sized_parser(__doc__, **sizes)
    parser.add_argument("--profile", action="store_true", help="print what an eager step's time goes to")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    options = parse(arguments)
    torch.manual_seed(0)
    model = UnifiedModel(config_of(options))
    data = Data.make(options.length, options.rows)
    tell(
        f"{active_parameters(model):,} parameters without the embedding, {options.rows} rows of {options.length} tokens"
    )
    line = report(measure(model, data, options.rounds), model, data, options)
    if options.profile:
        for name, share in where_it_goes(Step(model, compile=False), data).items():
            tell(f"{share:6.1%}  {name}")
    print(json.dumps(line))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
