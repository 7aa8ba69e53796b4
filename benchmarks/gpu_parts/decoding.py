"""Decoding of a 7B shape: images of 1,024 codes, and what products and attention of a step cost by themselves."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.gpu_parts.machine import JSON, seconds
from benchmarks.gpu_parts.shapes import SPACE, shape
from unimodal.generation.engine import Engine
from unimodal.generation.forward import StaticForward
from unimodal.generation.guidance import GuidanceConfig
from unimodal.generation.requests import DecodeConfig, Request
from unimodal.generation.sampling import SamplingConfig
from unimodal.model.flops import active_parameters
from unimodal.model.inference.streaming import can_stream, streamed
from unimodal.model.model import UnifiedModel

Case = tuple[int, float, SamplingConfig]
"""Rows, guidance, sampling."""

REPEATS = 4
"""Times that a recorded graph does what is measured."""

PLAIN = SamplingConfig(temperature=0.9)


def products() -> JSON:
    """TB/s at which the joined matrices of a 7B step are read, by shape and rows: as torch does it, and streamed."""
    found: JSON = {}
    for outputs, inputs in ((4096, 4096), (12_288, 4096), (22_016, 4096), (4096, 11_008), (65_536, 4096)):
        weights = [torch.randn(outputs, inputs, device="cuda", dtype=torch.bfloat16) for _ in range(8)]
        for rows in (1, 2, 64):
            x = torch.randn(rows, inputs, device="cuda", dtype=torch.bfloat16)
            for name, way in {"torch": F.linear, "streamed": streamed}.items():
                if name == "torch" or can_stream(x, weights[0]):
                    taken = _replayed(lambda x: [way(x, weight) for weight in weights], x) / len(weights)  # noqa: B023
                    found[f"{outputs}x{inputs}, {rows} rows, {name}"] = round(2 * outputs * inputs / taken / 1e12, 2)
    return found


def attention() -> JSON:
    """Microseconds of one layer's attention for one new token over 1,088 slots: torch's kernel, and two products."""
    found: JSON = {}
    for rows in (1, 2, 64):
        queries = torch.randn(rows, 32, 1, 128, device="cuda", dtype=torch.bfloat16)
        keys, values = torch.randn(2, rows, 32, 1088, 128, device="cuda", dtype=torch.bfloat16)
        bias = torch.zeros(rows, 1, 1, 1088, device="cuda", dtype=torch.bfloat16)
        ways = {"kernel": _kernel, "products": torch.compile(_products, dynamic=False)}
        for name, way in ways.items():
            found[f"{name}, {rows} rows"] = round(_replayed(way, queries, keys, values, bias) * 1e6, 1)
    return found


def _replayed(way: Any, *tensors: Any) -> float:
    for _ in range(3):
        way(*tensors)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for _ in range(REPEATS):
            way(*tensors)
    return seconds(graph.replay) / REPEATS


def _kernel(queries: Any, keys: Any, values: Any, bias: Any) -> Any:
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)


def _products(queries: Any, keys: Any, values: Any, bias: Any) -> Any:
    scores = (queries.float() * keys.float()).sum(-1) * keys.shape[-1] ** -0.5 + bias[:, :, 0].float()
    return (scores.softmax(-1)[..., None] * values.float()).sum(-2, keepdim=True).to(queries.dtype)


def images(cases: list[Case]) -> list[JSON]:
    """Seconds of images of 1,024 codes, the steps compiled before the clock starts."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            model = UnifiedModel(shape("7B")).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    engine, specials = Engine(model, SPACE, StaticForward(model)), SPACE.specials
    weights, found = 2 * active_parameters(model), []
    for rows, guidance, sampling in cases:
        config = DecodeConfig(
            mode="image", max_new_tokens=1040, sampling=sampling, guidance=GuidanceConfig(scale=guidance)
        )
        requests = [
            Request(prompt=[specials.bos, *range(100 + i, 120 + i), specials.sep], config=config, seed=i)
            for i in range(rows)
        ]
        started = time.perf_counter()
        scheduler = engine.scheduler(rows=rows, limits=engine._limits(requests))
        for request in requests:
            scheduler.submit(request)
        for _ in range(6):
            scheduler.step(pieces=False)
        torch.cuda.synchronize()
        compiling, started = time.perf_counter() - started, time.perf_counter()
        answers = engine.decode(requests, rows=rows)
        taken = time.perf_counter() - started
        steps = len(answers[0].ids)
        found.append(
            {
                "rows": rows,
                "guidance": guidance,
                "top_p": sampling.top_p,
                "compile_s": round(compiling, 1),
                "seconds": round(taken, 2),
                "ms_a_token": round(taken / steps * 1000, 3),
                "weights_tb_per_s": round(weights * steps / taken / 1e12, 2),
                "images_per_minute": round(60 * rows / taken, 1),
                "well_formed": sum(len(answer.ids) == 1026 for answer in answers),
                "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1),
            }
        )
        del scheduler
    return found
