"""Slow and obvious: attention one query, one head and one key at a time, and who may look at whom from its meaning."""

from __future__ import annotations

import cmath
import math
from collections.abc import Sequence
from random import Random

import torch
from torch import Tensor

from unimodal.model.attention import Attention, HeadLayerNorm

# Shapes: B rows, T tokens, H query heads, K key/value heads, W head width.


def random_layout(random: Random, length: int) -> tuple[list[int], list[int]]:
    """Documents and branches of one row: documents with a trunk and up to three branches, then padding."""
    documents: list[int] = []
    branches: list[int] = []
    for document in range(random.randint(1, 4)):
        for branch in range(random.randint(1, 4)):
            run = random.randint(1, 4)
            documents += [document] * run
            branches += [branch] * run
    padding = max(0, length - len(documents))
    return ([*documents, *[-1] * padding])[:length], ([*branches, *[0] * padding])[:length]


def visible(documents: Sequence[int], branches: Sequence[int]) -> list[set[int]]:
    """What each token reads when its document's trunk and its own branch are written out alone, up to itself."""
    seen = []
    for query in range(len(documents)):
        alone = [
            index
            for index in range(len(documents))
            if documents[index] == documents[query] and branches[index] in (0, branches[query])
        ]
        seen.append(set(alone[: alone.index(query) + 1]))
    return seen


def attend_slowly(queries: Tensor, keys: Tensor, values: Tensor, seen: Sequence[Sequence[set[int]]]) -> Tensor:
    """queries (B, H, T, W), keys and values (B, K, T, W), seen[b][t] the keys of a query -> (B, H, T, W)."""
    out = torch.zeros_like(queries)
    num_rows, num_heads, length, width = queries.shape
    heads_a_key = num_heads // keys.shape[1]
    for row in range(num_rows):
        for head in range(num_heads):
            key_head = head // heads_a_key
            for query in range(length):
                index = sorted(seen[row][query])
                scores = [float(queries[row, head, query] @ keys[row, key_head, j]) / math.sqrt(width) for j in index]
                largest = max(scores)
                weights = [math.exp(score - largest) for score in scores]
                for weight, j in zip(weights, index, strict=True):
                    out[row, head, query] += weight / sum(weights) * values[row, key_head, j]
    return out


def rotate_slowly(vector: Tensor, position: int, theta: float) -> Tensor:
    """One head's vector (W,): channels i and i + W/2 are a complex number, turned by position * theta^(-2i/W)."""
    half = len(vector) // 2
    turned = vector.clone()
    for i in range(half):
        angle = position * theta ** (-2 * i / len(vector))
        number = complex(float(vector[i]), float(vector[i + half])) * cmath.exp(1j * angle)
        turned[i], turned[i + half] = number.real, number.imag
    return turned


def layer_norm_slowly(vector: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm of one head's vector (W,)."""
    mean = sum(vector.tolist()) / len(vector)
    variance = sum((value - mean) ** 2 for value in vector.tolist()) / len(vector)
    return (vector - mean) / math.sqrt(variance + eps) * weight + bias


def attention_layer_slowly(
    layer: Attention, x: Tensor, positions: Sequence[Sequence[int]], seen: Sequence[Sequence[set[int]]], theta: float
) -> Tensor:
    """The whole attention layer on x (B, T, D): project, QK-norm, rotate, attend, project."""
    qkv, width = layer.qkv, layer.qkv.head_dim
    queries, keys, values = (
        (x @ projection.weight.T).unflatten(-1, (-1, width)).transpose(1, 2).clone()
        for projection in (qkv.q_proj, qkv.k_proj, qkv.v_proj)
    )
    for heads, norm in ((queries, qkv.q_norm), (keys, qkv.k_norm)):
        for row in range(heads.shape[0]):
            for head in range(heads.shape[1]):
                for token in range(heads.shape[2]):
                    vector = heads[row, head, token].clone()
                    if isinstance(norm, HeadLayerNorm):
                        vector = layer_norm_slowly(vector, norm.weight[head], norm.bias[head], norm.eps)
                    heads[row, head, token] = rotate_slowly(vector, positions[row][token], theta)
    mixed = attend_slowly(queries, keys, values, seen)
    return mixed.transpose(1, 2).flatten(2) @ layer.o_proj.weight.T


def spanned_layout(random: Random, length: int) -> tuple[list[int], list[int], list[int]]:
    """As `random_layout`, with spans: pieces of a branch that are plain, clean or noised images."""
    documents, branches = random_layout(random, length)
    spans = [0] * length
    start = number = 0
    while start < length:
        end = start + 1
        while end < length and (documents[end], branches[end]) == (documents[start], branches[start]):
            end += 1
        cut = random.randint(start, end)
        number += 1
        for index in range(cut, end if documents[start] >= 0 else cut):
            spans[index] = random.choice((number, -number)) if index == cut else spans[cut]
        start = end
    return documents, branches, spans


def visible_with_spans(documents: Sequence[int], branches: Sequence[int], spans: Sequence[int]) -> list[set[int]]:
    """What each token reads: what it would read without spans, without others' noised images, and its own image."""
    seen = []
    for query, keys in enumerate(visible(documents, branches)):
        own = {
            key for key in range(len(spans)) if spans[key] == spans[query] != 0 and documents[key] == documents[query]
        }
        seen.append({key for key in keys if spans[key] >= 0} | own | {query})
    return seen
