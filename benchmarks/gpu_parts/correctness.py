"""Whether CUDA computes what the CPU and a slow oracle compute: each figure is the largest relative error."""

from __future__ import annotations

import copy
from random import Random
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_parts.machine import JSON
from benchmarks.gpu_parts.shapes import SPACE, packed_batch
from unimodal.generation.engine import Engine
from unimodal.generation.forward import StaticForward
from unimodal.generation.guidance import GuidanceConfig
from unimodal.generation.requests import DecodeConfig, Request
from unimodal.generation.sampling import SamplingConfig
from unimodal.model.block_masks import block_mask
from unimodal.model.config import ModelConfig, TransformerConfig
from unimodal.model.kernels import attend
from unimodal.model.masks import DocumentEnds, dense_mask
from unimodal.model.model import UnifiedModel
from unimodal.model.token_head import plain_scores, scores_in_parts
from unimodal.training.optimizers.build import MuonConfig, build_optimizer

SMALL = TransformerConfig(dim=256, num_layers=4, num_heads=4, num_kv_heads=2, hidden_dim=704, max_length=4096)


def error(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest number expected."""
    difference = (found.detach().double().cpu() - expected.detach().double().cpu()).abs().max()
    return float(difference / expected.detach().double().abs().max().cpu())


def attention(length: int, *, branches: bool, spans: int) -> JSON:
    """FlexAttention in blocks beside softmax over all pairs in float64, forward and backward."""
    random = Random(length)
    fields = [_layout(random, length, branches=branches, spans=spans) for _ in range(2)]
    documents, branch, span = (torch.tensor(field, device="cuda") for field in zip(*fields, strict=True))
    heads = [torch.randn(2, count, length, 64, device="cuda", requires_grad=True) for count in (8, 2, 2)]
    narrow = [x.detach().bfloat16().requires_grad_() for x in heads]
    mask = block_mask(documents, branch if branches else None, span if spans else None)
    found = torch.compile(attend)(narrow[0], narrow[1], narrow[2], mask)
    return _against_oracle(found, narrow, dense_mask(documents, branch, span))


def documents() -> JSON:
    """FlashAttention on packed documents beside softmax over all pairs in float64, forward and backward."""
    batch = packed_batch(2, length=1500).to("cuda")
    ends = DocumentEnds(batch.facts.ends, batch.facts.max_length)
    shapes = (8, 2, 2)
    narrow = [torch.randn(2, n, 1500, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for n in shapes]
    found = torch.compile(attend)(narrow[0], narrow[1], narrow[2], ends)
    return _against_oracle(found, narrow, dense_mask(batch.documents))


def _against_oracle(found: Tensor, narrow: list[Tensor], dense: Tensor) -> JSON:
    exact = [x.detach().double().requires_grad_() for x in narrow]
    queries, keys, values = exact[0], *(x.repeat_interleave(4, dim=1) for x in exact[1:])
    scores = (queries @ keys.mT / 8).masked_fill(~dense, float("-inf"))
    expected = scores.softmax(-1) @ values
    slope = torch.randn_like(found)
    backward = torch.autograd.grad(found, narrow, slope)
    oracle = torch.autograd.grad(expected, exact, slope.double())
    apart = max(error(a, b) for a, b in zip(backward, oracle, strict=True))
    return {"forward": error(found, expected), "backward": apart}


def _layout(random: Random, length: int, *, branches: bool, spans: int) -> tuple[list[int], list[int], list[int]]:
    """Documents one after the other, the second half of each in two branches, a picture in each trunk, padding."""
    documents, branch, span = list[int](), list[int](), list[int]()
    number = 0
    while len(documents) < length - 40:
        size = min(random.randint(20, 400), length - len(documents))
        trunk, first = size // 2, size // 4
        documents += [number] * size
        branch += [0] * trunk + ([1] * first + [2] * (size - trunk - first) if branches else [0] * (size - trunk))
        picture = spans * (number + 1)
        span += [0] + [picture] * (trunk // 2) + [0] * (size - 1 - trunk // 2)
        number += 1
    padding = length - len(documents)
    return documents + [-1] * padding, branch + [0] * padding, span + [0] * padding


def token_scores() -> JSON:
    """Cross-entropy in parts under autocast beside that of all logits in float32."""
    features = torch.randn(3000, 512, device="cuda").requires_grad_()
    weight = (torch.randn(81_920, 512, device="cuda") * 0.05).requires_grad_()
    targets = torch.randint(81_920, (3000,), device="cuda")

    def loss(scores: Any) -> Tensor:
        return (scores.log_z - scores.of_targets + 1e-4 * scores.log_z**2).sum()

    with torch.autocast("cuda", torch.bfloat16):
        parts = loss(scores_in_parts(features, weight, targets, at_once=2**26))
    plain = loss(plain_scores(features @ weight.T, targets))
    found, expected = (torch.autograd.grad(each, (features, weight)) for each in (parts, plain))
    return {"loss": error(parts, plain), "gradients": max(map(error, found, expected))}


def optimizer_steps() -> JSON:
    """Three steps of Muon and AdamW on both devices from the same gradients; Muon's products are in bf16 on CUDA."""
    torch.manual_seed(0)
    here = UnifiedModel(ModelConfig(vocab_size=512, trunk=SMALL))
    there = copy.deepcopy(here).cuda()
    optimizers = [build_optimizer(model, MuonConfig()) for model in (here, there)]
    for _ in range(3):
        for one, other in zip(here.parameters(), there.parameters(), strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.cuda()
        for optimizer in optimizers:
            optimizer.step()
    steps = {state["step"].device.type for state in optimizers[1].state.values() if "step" in state}
    apart = [error(b, a) for a, b in zip(here.parameters(), there.parameters(), strict=True)]
    return {"weights": max(apart), "steps_on": sorted(steps)}


def losses(steps: int = 20) -> JSON:
    """A run with blocks compiled under bf16 autocast beside one in float32, uncompiled and with dense masks."""
    from benchmarks.gpu_parts.training import Run  # imports what the correctness of kernels does not need

    curves = []
    for fast in (True, False):
        torch.manual_seed(0)
        model = UnifiedModel(ModelConfig(vocab_size=SPACE.vocab_size, trunk=SMALL)).cuda()
        run = Run(model, fast=fast, rate=1e-3)
        batches = [packed_batch(1, seed).to("cuda") for seed in range(4)]
        curves.append([float(run.step([batches[i % 4]])) for i in range(steps)])
    apart = max(abs(a - b) / b for a, b in zip(*curves, strict=True))
    return {"largest_difference": apart, "first": curves[0][0], "last": [curve[-1] for curve in curves]}


def decoding() -> JSON:
    """Recorded and compiled steps in float64 beside steps one by one: ids of answers of all kinds."""
    torch.manual_seed(0)
    model = UnifiedModel(ModelConfig(vocab_size=SPACE.vocab_size, trunk=SMALL)).eval().requires_grad_(False)
    model = model.double().cuda()
    specials, sampling = SPACE.specials, SamplingConfig(temperature=0.9, top_k=50)
    configs = [
        DecodeConfig(mode="text", max_new_tokens=120, sampling=sampling),
        DecodeConfig(mode="image", max_new_tokens=1040, sampling=sampling, guidance=GuidanceConfig(scale=3.0)),
    ]
    requests = [
        Request(prompt=[specials.bos, *range(100 + i, 120 + i), specials.sep], config=configs[i % 2], seed=i)
        for i in range(5)
    ]
    with torch.inference_mode():
        plain = Engine(model, SPACE).decode(requests)
        recorded = Engine(model, SPACE, StaticForward(model)).decode(requests)
    same = [sum(a == b for a, b in zip(x.ids, y.ids, strict=False)) for x, y in zip(plain, recorded, strict=True)]
    total = sum(len(x.ids) for x in plain)
    return {
        "ids_equal": sum(same) / total,
        "answers_equal": sum(x.ids == y.ids for x, y in zip(plain, recorded, strict=True)),
    }
