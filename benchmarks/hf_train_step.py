"""A training step of ours against transformers' class: one Chameleon of about 30M, one optimizer and precision.

`equal_lengths`: texts of 512 tokens, all learnt; tokens a second. `natural_lengths`: pictures of 64 codes, each with a
caption and eight questions; ours are packed, all questions of a picture in one row, theirs are one sequence for each,
padded to the longest of a batch; learnt tokens (captions and answers) a second. `peak_memory` of the latter. Each arm
runs in a process of its own, in turn; ours with compiled blocks, theirs as it comes. One JSON line a comparison goes to
stdout; ratio > 1 means ours is better.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, it does not see its neighbours otherwise
from data_pipelines.batch import PackedBatch, collate
from data_pipelines.outline import Outline, Rendered, Run
from data_pipelines.packing import best_fit
from tokenizers_vq.token_space import FixedLayout, TokenSpace
from unimodal.model.config import ModelConfig, TransformerConfig
from unimodal.model.inference.compiling import compile_blocks
from unimodal.model.masks import dense_mask
from unimodal.model.model import UnifiedModel
from unimodal.training.objectives.base import total
from unimodal.training.objectives.next_token import next_token_terms
from unimodal.training.precision import matmul_dtype

TEXT, CODES, LENGTH = 7168, 1024, 512
SPACE = TokenSpace(
    text_size=TEXT, text_hash="", codebook_size=CODES, image_hash="", layout=FixedLayout(rows=8, columns=8)
)
DTYPE = matmul_dtype(torch.device("cpu"))
QUESTIONS = 8
Pair = tuple[list[int], list[int]]


def pictures(count: int) -> Iterator[tuple[list[int], list[Pair]]]:
    """(codes, [(prompt, answer)]): a caption of 4 to 12 ids, questions of 5 to 12 with answers of 1 to 3."""
    random = Random(0)

    def words(low: int, high: int) -> list[int]:
        return [random.randrange(16, TEXT) for _ in range(random.randint(low, high))]

    for _ in range(count):
        codes = [random.randrange(TEXT, TEXT + CODES) for _ in range(64)]
        yield codes, [([], words(4, 12)), *((words(5, 12), words(1, 3)) for _ in range(QUESTIONS))]


def packed_documents(count: int) -> list[Rendered]:
    """A picture is a trunk, its caption and questions are branches."""
    special = SPACE.specials
    found = []
    for codes, pairs in pictures(count):
        trunk = Run(np.array([special.bos, special.boi, *codes, special.eoi]), 0.0)
        blocks = [
            (Run(np.array([*prompt, special.sep]), 0.0), Run(np.array([*answer, special.eos]), 1.0))
            for prompt, answer in pairs
        ]
        found.append(Outline((trunk,), tuple(blocks), branched=True).build())
    return found


def padded_batches(count: int, rows: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """ids, mask and labels of sequences that each hold the picture, one prompt and its answer."""
    special, sequences = SPACE.specials, list[tuple[list[int], list[int]]]()
    for codes, pairs in pictures(count):
        for prompt, answer in pairs:
            before = [special.bos, special.boi, *codes, special.eoi, *prompt, special.sep]
            learnt = [*answer, special.eos]
            sequences.append((before + learnt, [-100] * len(before) + learnt))
    Random(1).shuffle(sequences)
    return [_padded(sequences[start : start + rows]) for start in range(0, len(sequences) - rows + 1, rows)]


def _padded(chosen: Sequence[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor, Tensor]:
    width = max(len(ids) for ids, _ in chosen)
    ids = torch.zeros(len(chosen), width, dtype=torch.int64)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for row, (sequence, targets) in enumerate(chosen):
        ids[row, : len(sequence)], labels[row, : len(sequence)] = torch.tensor(sequence), torch.tensor(targets)
        mask[row, : len(sequence)] = 1
    return ids, mask, labels


class Ours:
    """Packed rows through UnifiedModel with compiled blocks."""

    def __init__(self, options: argparse.Namespace) -> None:
        trunk = TransformerConfig(
            dim=options.dim,
            num_layers=options.layers,
            num_heads=options.heads,
            num_kv_heads=options.heads,
            hidden_dim=options.hidden,
            max_length=LENGTH,
        )
        self.model = UnifiedModel(ModelConfig(vocab_size=SPACE.vocab_size, trunk=trunk))
        if not options.eager:
            compile_blocks(self.model)

    def batches(self, kind: str, rows: int, count: int) -> list[PackedBatch]:
        """Rows of LENGTH tokens."""
        if kind == "equal":
            random = Random(0)
            texts = [np.array([random.randrange(16, TEXT) for _ in range(LENGTH)]) for _ in range(rows * count)]
            documents = [Outline((), ((Run(text, 1.0),),)).build() for text in texts]
        else:
            documents = packed_documents(rows * count)
        order = best_fit([len(document) for document in documents], LENGTH)
        packed = [[documents[index] for index in row] for row in order]
        return [collate(packed[at : at + rows], LENGTH, SPACE, rows) for at in range(0, len(packed) - rows + 1, rows)]

    def loss(self, batch: PackedBatch) -> tuple[Tensor, float]:
        """The mean, and the tokens that it is over."""
        branches = batch.branches if batch.facts.has_branches else None
        features = self.model(batch.tokens, batch.positions, dense_mask(batch.documents, branches))
        terms = next_token_terms(
            features, self.model.token_head, batch.targets, batch.loss_weights, batch.modality, z_weight=0.0
        )
        weight = float(batch.loss_weights.sum())
        return total(terms) / weight, weight


class Theirs:
    """Padded batches through transformers' Chameleon."""

    def __init__(self, options: argparse.Namespace) -> None:
        from transformers import ChameleonConfig, ChameleonForConditionalGeneration, ChameleonVQVAEConfig

        encoder = ChameleonVQVAEConfig(base_channels=32, channel_multiplier=[1], num_res_blocks=1, resolution=32)
        config = ChameleonConfig(
            vocab_size=SPACE.vocab_size,
            hidden_size=options.dim,
            num_hidden_layers=options.layers,
            num_attention_heads=options.heads,
            num_key_value_heads=options.heads,
            intermediate_size=options.hidden,
            max_position_embeddings=LENGTH,
            vq_config=encoder.to_dict(),
            vocabulary_map={"<image>": 8, "IMGIMGAZ": 9},
        )
        self.model: Any = ChameleonForConditionalGeneration(config)
        self.model.model.vqmodel = torch.nn.Identity()  # images are ids here

    def batches(self, kind: str, rows: int, count: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """As many tokens a batch as ours, about."""
        if kind == "natural":
            return padded_batches(rows * count, rows * LENGTH // 80)
        random = Random(0)
        found = []
        for _ in range(count):
            ids = torch.tensor([[random.randrange(16, TEXT) for _ in range(LENGTH)] for _ in range(rows)])
            found.append((ids, torch.ones_like(ids), ids))
        return found

    def loss(self, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, float]:
        """As ours."""
        ids, mask, labels = batch
        output = self.model(input_ids=ids, attention_mask=mask, labels=labels)
        return output.loss, float((labels[:, 1:] != -100).sum())


def measure(arm: Any, options: argparse.Namespace) -> dict[str, float]:
    """Learnt tokens a second over the steps after a warm-up, parameters, and the peak of memory in MiB."""
    parameters = [each for each in arm.model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, foreach=True)
    batches = arm.batches(options.kind, options.rows, options.steps + 3)
    tokens, began = 0.0, 0.0
    for number in range(options.steps + 2):
        if number == 2:
            tokens, began = 0.0, time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=torch.bfloat16 == DTYPE):
            loss, count = arm.loss(batches[number % len(batches)])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        tokens += count
    rate = tokens / (time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rate": rate, "peak": peak, "parameters": sum(each.numel() for each in parameters)}


def in_process(arm: str, kind: str, given: Sequence[str]) -> dict[str, float]:
    """Measured in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--arm", arm, "--kind", kind, *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"the arm {arm} failed: {done.stderr[-600:]}")
    return json.loads(done.stdout.splitlines()[-1])


def line(name: str, unit: str, ours: Sequence[float], theirs: Sequence[float], *, less_is_better: bool = False) -> str:
    """One comparison, as every benchmark prints it."""
    first, second = statistics.median(ours), statistics.median(theirs)
    device = {"machine": platform.machine(), "threads": torch.get_num_threads(), "dtype": str(DTYPE)}
    device["capability"] = torch.backends.cpu.get_cpu_capability()
    ratio = second / first if less_is_better else first / second
    result = {"name": name, "unit": unit, "ours": first, "theirs": second, "ratio": ratio, "runs": len(ours)}
    return json.dumps({**result, "device": device, "versions": {"torch": torch.__version__}})


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure one arm, or compare both."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arm", choices=("ours", "theirs"), default=None, help="measure this one alone")
    parser.add_argument("--kind", choices=("equal", "natural"), default="equal")
    for name, default in (("dim", 512), ("layers", 6), ("heads", 8), ("hidden", 1376), ("rows", 8), ("steps", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--eager", action="store_true", help="ours uncompiled")
    options = parser.parse_args(arguments)
    if options.arm:
        print(json.dumps(measure((Ours if options.arm == "ours" else Theirs)(options), options)))
        return 0
    sizes = ("dim", "layers", "heads", "hidden", "rows", "steps")
    given = [word for name in sizes for word in (f"--{name}", str(getattr(options, name)))]
    given += ["--eager"] if options.eager else []
    for kind, unit in (("equal", "tokens/s"), ("natural", "learnt tokens/s")):
        found = [[in_process(arm, kind, given) for arm in ("ours", "theirs")] for _ in range(options.rounds)]
        ours, theirs = zip(*found, strict=True)
        print(f"{ours[0]['parameters']:,.0f} and {theirs[0]['parameters']:,.0f} parameters", file=sys.stderr)
        print(line(f"{kind}_lengths", unit, [x["rate"] for x in ours], [x["rate"] for x in theirs]), flush=True)
    peaks = [[x["peak"] for x in arm] for arm in (ours, theirs)]  # pyright: ignore[reportPossiblyUnboundVariable]
    print(line("peak_memory", "MiB", peaks[0], peaks[1], less_is_better=True), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
