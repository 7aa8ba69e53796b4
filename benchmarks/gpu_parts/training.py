"""Training of packed mixed-modal rows: tokens a second, share of the device's peak, memory."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.gpu_parts.machine import JSON
from benchmarks.gpu_parts.shapes import TRUNKS, packed_batch, shape
from data_pipelines.batch import PackedBatch
from unimodal.devices import known_peak
from unimodal.model.block_masks import training_mask
from unimodal.model.flops import active_parameters
from unimodal.model.inference.compiling import compile_blocks
from unimodal.model.masks import DocumentEnds, dense_mask
from unimodal.model.model import UnifiedModel
from unimodal.training.gradients import gradients_of, to_means
from unimodal.training.objectives.base import total
from unimodal.training.objectives.next_token import counted_terms
from unimodal.training.optimizers.build import AdamWConfig, MuonConfig, build_optimizer


class Run:
    """Steps as training/module.py takes them: fast with compiled blocks in bf16 autocast, or plain in float32."""

    def __init__(self, model: UnifiedModel, *, fast: bool, rate: float, muon: bool = False, flash: bool = True) -> None:
        self.model, self.fast, self.flash = model, fast, flash
        if fast:
            compile_blocks(model)
        adamw = AdamWConfig(learning_rate=rate)
        self.optimizer = build_optimizer(model, MuonConfig(adamw=adamw, learning_rate=rate) if muon else adamw)

    def step(self, batches: Sequence[PackedBatch]) -> Tensor:
        """One optimizer step over some batches; the loss, a mean over their tokens."""
        self.optimizer.zero_grad()
        summed = weight = torch.zeros((), device="cuda")
        for batch in batches:
            with torch.autocast("cuda", torch.bfloat16, enabled=self.fast):
                loss = self._loss(batch)
            loss.backward()
            summed, weight = summed + loss.detach(), weight + batch.facts.counted.weights.sum()
        norm = to_means(gradients_of(self.optimizer), weight)
        torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), 1.0, norm)
        self.optimizer.step()
        return summed / weight

    def _loss(self, batch: PackedBatch) -> Tensor:
        ends = DocumentEnds(batch.facts.ends, batch.facts.max_length)
        fast = self.flash and self.fast
        mask = training_mask(batch.documents, None, None, ends if fast else None)
        mask = mask if self.fast else dense_mask(batch.documents)
        features = self.model(batch.tokens, batch.positions, mask)
        counted, head = batch.facts.counted, self.model.token_head
        return total(counted_terms(features, head, batch.targets, counted, batch.modality, 1e-5))


def throughput(
    size: str, rows: int, accumulate: int, *, muon: bool = False, flash: bool = True, steps: int = 3
) -> JSON:
    """Medians are not needed: a step takes a second, and the clock counts several of them together."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = UnifiedModel(shape(size))
    torch.cuda.reset_peak_memory_stats()
    run = Run(model, fast=True, rate=1e-4, muon=muon, flash=flash)
    batches = [packed_batch(rows, seed) for seed in range(accumulate)]
    tokens = sum(batch.num_tokens for batch in batches)
    pairs = sum(batch.facts.num_pairs for batch in batches)
    there = [batch.to("cuda") for batch in batches]
    started = time.perf_counter()
    run.step(there)
    torch.cuda.synchronize()
    compiling, started = time.perf_counter() - started, time.perf_counter()
    for _ in range(steps):
        run.step(there)
    torch.cuda.synchronize()
    taken = (time.perf_counter() - started) / steps
    trunk = TRUNKS[size]
    flops = 6 * active_parameters(model) * tokens + 12 * trunk.num_layers * trunk.num_heads * trunk.head_dim * pairs
    tflops = known_peak(torch.device("cuda"))
    peak = None if tflops is None else 1e12 * tflops
    found: JSON = {
        "size": size,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "optimizer": "muon" if muon else "adamw",
        "attention": "flash" if flash else "flex",
        "tokens_a_step": tokens,
        "full": round(tokens / sum(batch.tokens.numel() for batch in batches), 3),
        "compile_s": round(compiling, 1),
        "step_s": round(taken, 3),
        "tokens_per_s": round(tokens / taken),
        "tflops": round(flops / taken / 1e12, 1),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1),
    }
    return found | ({"mfu": round(flops / taken / peak, 3)} if peak else {})


def where_time_goes(size: str, rows: int) -> JSON:
    """Milliseconds of the parts of one step, the largest kernels among them."""
    from torch.profiler import ProfilerActivity, profile

    torch.manual_seed(0)
    with torch.device("cuda"):
        model = UnifiedModel(shape(size))
    run, batches = Run(model, fast=True, rate=1e-4), [packed_batch(rows).to("cuda")]
    for _ in range(2):
        run.step(batches)
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        run.step(batches)
        torch.cuda.synchronize()
    kernels = sorted(profiled.key_averages(), key=lambda event: -event.self_device_time_total)
    shares = [[round(event.self_device_time_total / 1000, 2), event.count, event.key[:110]] for event in kernels[:40]]
    return {"ms": round(sum(event.self_device_time_total for event in kernels) / 1000, 1), "kernels": shares}
